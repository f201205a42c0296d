/* What passes over values of type T (a block of them: ROW), computed in type A (a block: V; whole
   numbers as wide: PLACES), are made of. Part of rows.c. */

#ifdef SHUFFLES /* by way of a register of w values: what is stored in parts is slow to load as a whole */
#if BLOCK > 8
typedef T row8 __attribute__((vector_size(8 * sizeof(T))));
#endif
typedef T row4 __attribute__((vector_size(4 * sizeof(T))));
typedef T row2 __attribute__((vector_size(2 * sizeof(T))));

INLINE ROW load(const T *x, const int w) {
  ROW row = {0};
#if BLOCK > 8
  if (w == 8) {
    row8 part;
    memcpy(&part, x, sizeof(part));
    row = __builtin_shufflevector(part, (row8){0}, 0, 1, 2, 3, 4, 5, 6, 7 MORE(8));
  } else
#endif
  if (w == 4) {
    row4 part;
    memcpy(&part, x, sizeof(part));
    row = __builtin_shufflevector(part, (row4){0}, 0, 1, 2, 3, 4, 4, 4, 4 MORE(4));
  } else if (w == 2) {
    row2 part;
    memcpy(&part, x, sizeof(part));
    row = __builtin_shufflevector(part, (row2){0}, 0, 1, 2, 2, 2, 2, 2, 2 MORE(2));
  } else {
    memcpy(&row, x, w * sizeof(T));
  }
  return row;
}

INLINE void store(T *x, ROW row, const int w) {
#if BLOCK > 8
  if (w == 8) {
    row8 part = __builtin_shufflevector(row, row, 0, 1, 2, 3, 4, 5, 6, 7);
    memcpy(x, &part, sizeof(part));
  } else
#endif
  if (w == 4) {
    row4 part = __builtin_shufflevector(row, row, 0, 1, 2, 3);
    memcpy(x, &part, sizeof(part));
  } else if (w == 2) {
    row2 part = __builtin_shufflevector(row, row, 0, 1);
    memcpy(x, &part, sizeof(part));
  } else {
    memcpy(x, &row, w * sizeof(T));
  }
}
#else
INLINE ROW load(const T *x, const int w) {
  ROW row = {0};
  memcpy(&row, x, w * sizeof(T));
  return row;
}

INLINE void store(T *x, ROW row, const int w) { memcpy(x, &row, w * sizeof(T)); }
#endif

INLINE V get(const T *x, const int w) { /* the first w values of a block, zeros behind them */
  ROW row = load(x, w);
  return WIDE(row);
}

INLINE void put(T *x, V y, const int w) { store(x, NARROW(y), w); }

INLINE V of(const A *x, const int w) {
  V y = {0};
  memcpy(&y, x, w * sizeof(A));
  return y;
}

INLINE V where(V z, V y) { /* y where z is positive or no number, zero elsewhere */
  return (V)(~(z <= (V){0}) & (__typeof__(z <= z))y);
}

INLINE void add(double *sums, V y, const int w) {
  for (int j = 0; j < w; j++) sums[j] += y[j];
}

INLINE void add4(double *sums, const V *y, const int w) { add(sums, (y[0] + y[1]) + (y[2] + y[3]), w); }

INLINE void gather_of(V *y, int n, const T **x, const int64_t *step, const A *scale, int channels, int64_t start,
                      int count, int c, const int w) {
  for (int k = 0; k < n; k += 4) {
    const T *p[4] = {0};
    int64_t far[4] = {0};
    V by[4];
    for (int j = 0; j < 4 && k + j < n; j++) {
      p[j] = x[k + j] + start * step[k + j] + c;
      far[j] = step[k + j];
      by[j] = scale ? of(scale + (int64_t)(k + j) * channels + c, w) : (V){0} + 1;
    }
#define TAKE(m)                                                                                   \
  for (int i = 0; i < count; i++) {                                                               \
    V sum = y[i];                                                                                 \
    _Pragma("GCC unroll 4") for (int j = 0; j < m; j++) sum += by[j] * get(p[j] + i * far[j], w); \
    y[i] = sum;                                                                                   \
  }
    if (n - k >= 4) TAKE(4)
    else if (n - k == 3) TAKE(3)
    else if (n - k == 2) TAKE(2)
    else TAKE(1)
#undef TAKE
  }
}

/* y[i] += the sum over k of scale_k x_k, row i from `start` on, w channels from c on; scale null: of x_k. Four k at a
   time, whose pointers and scales stay in registers. */
static void gather(V *y, int n, const T **x, const int64_t *step, const A *scale, int channels, int64_t start,
                   int count, int c, int w) {
  switch (w) {
    case BLOCK: gather_of(y, n, x, step, scale, channels, start, count, c, BLOCK); break;
#if BLOCK > 8
    case 8: gather_of(y, n, x, step, scale, channels, start, count, c, 8); break;
#endif
    case 4: gather_of(y, n, x, step, scale, channels, start, count, c, 4); break;
    case 2: gather_of(y, n, x, step, scale, channels, start, count, c, 2); break;
    default: gather_of(y, n, x, step, scale, channels, start, count, c, 1);
  }
}

/* Do BODY(j) for the rows r from start to end, j counting to four and beginning again: sums of their own do not wait for
   one another. */
#define ROWS(BODY, w)                                                           \
  {                                                                             \
    int64_t r = start;                                                          \
    for (; r + 4 <= end; r += 4) {                                              \
      _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) { BODY(r + j, j, w) } \
    }                                                                           \
    for (; r < end; r++) { BODY(r, 0, w) }                                      \
  }

/* Do WORK(c, w) for blocks of w channels that begin at channel c, w a constant: whole ones, then 8, 4, 2 and 1. */
#define BLOCKS(WORK)                                             \
  {                                                              \
    int c = 0;                                                   \
    for (; c + BLOCK <= channels; c += BLOCK) { WORK(c, BLOCK) } \
    if (BLOCK > 8 && channels - c >= 8) { WORK(c, 8) c += 8; }   \
    if (channels - c >= 4) { WORK(c, 4) c += 4; }                \
    if (channels - c >= 2) { WORK(c, 2) c += 2; }                \
    if (channels - c >= 1) { WORK(c, 1) }                        \
  }

/* Do BODY for each thread's rows, a chunk of them (start to end) at a time. */
#define CHUNKS(BODY)                                                                                     \
  _Pragma("omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)")                  \
  for (int t = 0; t < threads; t++)                                                                      \
    for (int64_t start = rows * t / threads; start < rows * (t + 1) / threads; start += CHUNK) {         \
      int64_t end = start + CHUNK < rows * (t + 1) / threads ? start + CHUNK : rows * (t + 1) / threads; \
      BODY                                                                                               \
    }

static V *blocks(int64_t count) { /* of zeros; beginning where a register may be loaded from */
  V *found = aligned_alloc(sizeof(V), count * sizeof(V));
  memset(found, 0, count * sizeof(V));
  return found;
}

#define COLUMNS 16 /* channels that a product of matrices has side by side, in one or two registers each */
#define SIDEWAYS (COLUMNS / BLOCK)
static int columns_of(int channels) { return (channels + COLUMNS - 1) / COLUMNS * COLUMNS; }
