/* The passes for values of type T (a block of them: ROW), computed in type A (a block: V). Part of rows.c. */

#ifdef SHUFFLES /* by way of a register of w values: what is stored in parts is slow to load as a whole */
typedef T NAME(row8) __attribute__((vector_size(8 * sizeof(T))));
typedef T NAME(row4) __attribute__((vector_size(4 * sizeof(T))));
typedef T NAME(row2) __attribute__((vector_size(2 * sizeof(T))));

INLINE ROW NAME(load)(const T *x, const int w) {
  ROW row = {0};
  if (w == 8) {
    NAME(row8) part;
    memcpy(&part, x, sizeof(part));
    row = __builtin_shufflevector(part, (NAME(row8)){0}, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 8, 8, 8, 8);
  } else if (w == 4) {
    NAME(row4) part;
    memcpy(&part, x, sizeof(part));
    row = __builtin_shufflevector(part, (NAME(row4)){0}, 0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4);
  } else if (w == 2) {
    NAME(row2) part;
    memcpy(&part, x, sizeof(part));
    row = __builtin_shufflevector(part, (NAME(row2)){0}, 0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2);
  } else {
    memcpy(&row, x, w * sizeof(T));
  }
  return row;
}

INLINE void NAME(store)(T *x, ROW row, const int w) {
  if (w == 8) {
    NAME(row8) part = __builtin_shufflevector(row, row, 0, 1, 2, 3, 4, 5, 6, 7);
    memcpy(x, &part, sizeof(part));
  } else if (w == 4) {
    NAME(row4) part = __builtin_shufflevector(row, row, 0, 1, 2, 3);
    memcpy(x, &part, sizeof(part));
  } else if (w == 2) {
    NAME(row2) part = __builtin_shufflevector(row, row, 0, 1);
    memcpy(x, &part, sizeof(part));
  } else {
    memcpy(x, &row, w * sizeof(T));
  }
}
#else
INLINE ROW NAME(load)(const T *x, const int w) {
  ROW row = {0};
  memcpy(&row, x, w * sizeof(T));
  return row;
}

INLINE void NAME(store)(T *x, ROW row, const int w) { memcpy(x, &row, w * sizeof(T)); }
#endif

INLINE V NAME(get)(const T *x, const int w) { /* the first w values of a block, zeros behind them */
  ROW row = NAME(load)(x, w);
  return WIDE(row);
}

INLINE void NAME(put)(T *x, V y, const int w) { NAME(store)(x, NARROW(y), w); }

INLINE V NAME(of)(const A *x, const int w) {
  V y = {0};
  memcpy(&y, x, w * sizeof(A));
  return y;
}

INLINE V NAME(where)(V z, V y) { /* y where z is positive or no number, zero elsewhere */
  return (V)(~(z <= (V){0}) & (__typeof__(z <= z))y);
}

INLINE void NAME(add)(double *sums, V y, const int w) {
  for (int j = 0; j < w; j++) sums[j] += y[j];
}

INLINE void NAME(add4)(double *sums, const V *y, const int w) { NAME(add)(sums, (y[0] + y[1]) + (y[2] + y[3]), w); }

INLINE void NAME(gather_of)(V *y, int n, const T **x, const int64_t *step, const A *scale, int channels, int64_t start,
                            int count, int c, const int w) {
  for (int k = 0; k < n; k += 4) {
    const T *p[4] = {0};
    int64_t far[4] = {0};
    V by[4];
    for (int j = 0; j < 4 && k + j < n; j++) {
      p[j] = x[k + j] + start * step[k + j] + c;
      far[j] = step[k + j];
      by[j] = scale ? NAME(of)(scale + (int64_t)(k + j) * channels + c, w) : (V){0} + 1;
    }
#define TAKE(m)                                                                                         \
  for (int i = 0; i < count; i++) {                                                                     \
    V sum = y[i];                                                                                       \
    _Pragma("GCC unroll 4") for (int j = 0; j < m; j++) sum += by[j] * NAME(get)(p[j] + i * far[j], w); \
    y[i] = sum;                                                                                         \
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
static void NAME(gather)(V *y, int n, const T **x, const int64_t *step, const A *scale, int channels, int64_t start,
                         int count, int c, int w) {
  switch (w) {
    case 16: NAME(gather_of)(y, n, x, step, scale, channels, start, count, c, 16); break;
    case 8: NAME(gather_of)(y, n, x, step, scale, channels, start, count, c, 8); break;
    case 4: NAME(gather_of)(y, n, x, step, scale, channels, start, count, c, 4); break;
    case 2: NAME(gather_of)(y, n, x, step, scale, channels, start, count, c, 2); break;
    default: NAME(gather_of)(y, n, x, step, scale, channels, start, count, c, 1);
  }
}

/* Do BODY(j) for the rows r from start to end, j counting to four and beginning again: sums of their own do not wait for
   one another. */
#define ROWS(BODY, w)                                                               \
  {                                                                                 \
    int64_t r = start;                                                              \
    for (; r + 4 <= end; r += 4) {                                                  \
      _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) { BODY(r + j, j, w) }        \
    }                                                                               \
    for (; r < end; r++) { BODY(r, 0, w) }                                             \
  }

/* Do WORK(c, w) for blocks of w channels that begin at channel c, w a constant: 16 of them, then 8, 4, 2 and 1. */
#define BLOCKS(WORK)                                          \
  {                                                           \
    int c = 0;                                                \
    for (; c + BLOCK <= channels; c += BLOCK) { WORK(c, 16) } \
    if (channels - c >= 8) { WORK(c, 8) c += 8; }             \
    if (channels - c >= 4) { WORK(c, 4) c += 4; }             \
    if (channels - c >= 2) { WORK(c, 2) c += 2; }             \
    if (channels - c >= 1) { WORK(c, 1) }                     \
  }

/* Do BODY for each thread's rows, a chunk of them (start to end) at a time. */
#define CHUNKS(BODY)                                                                     \
  _Pragma("omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)")  \
  for (int t = 0; t < threads; t++)                                                      \
    for (int64_t start = rows * t / threads; start < rows * (t + 1) / threads; start += CHUNK) { \
      int64_t end = start + CHUNK < rows * (t + 1) / threads ? start + CHUNK : rows * (t + 1) / threads; \
      BODY                                                                               \
    }

/* Moments over rows: mean[c], and inv[c] = 1 / sqrt(variance + eps). Running moments go `momentum` of the way there, the
   variance by its unbiased estimate. Sums are of differences to the first row, so that little cancels. */
void NAME(moments)(const T *x, int64_t step, int64_t rows, int channels, int threads, double eps, double momentum,
                   A *running_mean, A *running_var, double *mean, double *inv) {
  double *sums = calloc((size_t)2 * channels * threads, sizeof(double));
#define ROW_OF(r, j, w)                                         \
  V d = NAME(get)(x + (r) * step + c, w) - first;               \
  s[j] += d;                                                    \
  q[j] += d * d;
#define WORK(c, w)                                              \
  V first = NAME(get)(x + c, w), s[4] = {{0}}, q[4] = {{0}};    \
  ROWS(ROW_OF, w)                                               \
  NAME(add4)(sums + (size_t)2 * channels * t + c, s, w);        \
  NAME(add4)(sums + (size_t)2 * channels * t + channels + c, q, w);
  CHUNKS(BLOCKS(WORK))
#undef ROW_OF
#undef WORK
  for (int c = 0; c < channels; c++) {
    double s = 0, q = 0;
    for (int t = 0; t < threads; t++) {
      s += sums[(size_t)2 * channels * t + c];
      q += sums[(size_t)2 * channels * t + channels + c];
    }
    double shift = s / rows, var = q / rows - shift * shift;
    var = var < 0 ? 0 : var;
    mean[c] = NAME(get)(x + c, 1)[0] + shift;
    inv[c] = 1 / sqrt(var + eps);
    running_mean[c] += momentum * (mean[c] - running_mean[c]);
    running_var[c] += momentum * (var * rows / (rows > 1 ? rows - 1 : 1) - running_var[c]);
  }
  free(sums);
}

/* out = sum over k of gate_k (x_k - mean_k) inv_k; where mean_k is null, of gate_k x_k. `a` is room for (n + 1) C. */
void NAME(sum)(int n, const T **x, const int64_t *step, const A **gate, const double **mean, const double **inv,
               int64_t rows, int channels, int threads, A *a, T *out) {
  A *b = a + (size_t)n * channels;
  for (int c = 0; c < channels; c++) {
    double shift = 0;
    for (int k = 0; k < n; k++) {
      double scale = mean[k] ? *gate[k] * inv[k][c] : *gate[k];
      a[k * channels + c] = scale;
      shift -= mean[k] ? scale * mean[k][c] : 0;
    }
    b[c] = shift;
  }
#define WORK(c, w)                                                                        \
  V y[CHUNK], shift = NAME(of)(b + c, w);                                                 \
  int count = end - start;                                                                \
  for (int i = 0; i < count; i++) y[i] = shift;                                           \
  NAME(gather)(y, n, x, step, a, channels, start, count, c, w);                           \
  for (int i = 0; i < count; i++) NAME(put)(out + (start + i) * channels + c, y[i], w);
  CHUNKS(BLOCKS(WORK))
#undef WORK
}

/* dx = the sum of n gradients; the first `risen` of them count where x is positive or no number. */
void NAME(fan)(int n, int risen, const T **g, const int64_t *step, const T *x, int64_t x_step, int64_t rows, int channels,
               int threads, T *dx) {
#define WORK(c, w)                                                                                           \
  V y[CHUNK];                                                                                                \
  int count = end - start;                                                                                   \
  for (int i = 0; i < count; i++) y[i] = (V){0};                                                             \
  NAME(gather)(y, risen, g, step, 0, channels, start, count, c, w);                                          \
  if (risen)                                                                                                 \
    for (int i = 0; i < count; i++) y[i] = NAME(where)(NAME(get)(x + (start + i) * x_step + c, w), y[i]);    \
  NAME(gather)(y, n - risen, g + risen, step + risen, 0, channels, start, count, c, w);                      \
  for (int i = 0; i < count; i++) NAME(put)(dx + (start + i) * channels + c, y[i], w);
  CHUNKS(BLOCKS(WORK))
#undef WORK
}

/* Gradients of `slices` tensors that lie side by side in x, `channels` each. Slice s goes to the sums begin[s] up to
   begin[s + 1], whose gradients are g_k, through the gates of these columns. Wanted are the gradient of x (dx null: it is
   not) and those of gates (dgates null: they are not). `mean` null: x is not normalised. */
void NAME(back)(int slices, const int *begin, const T **g, const int64_t *g_step, const A *gates, const int *column,
                const T *x, int64_t step, const double *mean, const double *inv, int64_t rows, int channels, int threads,
                T *dx, A *dgates) {
  int n = begin[slices], width = slices * channels;
  A *a = calloc((size_t)n * channels + 2 * (size_t)width, sizeof(A)), *b = a + (size_t)n * channels, *d = b + width;
  for (int s = 0; s < slices; s++)
    for (int k = begin[s]; k < begin[s + 1]; k++)
      for (int c = 0; c < channels; c++) a[k * channels + c] = gates[column[k]] * (mean ? inv[s * channels + c] : 1);
  if (mean || dgates) { /* sums of g_k, and of g_k times what is gated */
    size_t size = (size_t)2 * n * channels;
    double *sums = calloc(size * threads, sizeof(double));
#define ROW_OF(r, j, w)                                                                  \
  V slope = NAME(get)(from + (r) * far, w);                                              \
  total[j] += slope;                                                                     \
  product[j] += slope * (NAME(get)(x + (r) * step + s * channels + c, w) - first);
#define WORK(c, w)                                                                       \
  V first = NAME(get)(x + s * channels + c, w);                                          \
  for (int k = begin[s]; k < begin[s + 1]; k++) {                                        \
    const T *from = g[k] + c;                                                            \
    int64_t far = g_step[k];                                                             \
    V total[4] = {{0}}, product[4] = {{0}};                                              \
    ROWS(ROW_OF, w)                                                                      \
    NAME(add4)(sums + size * t + (size_t)2 * k * channels + c, total, w);                \
    NAME(add4)(sums + size * t + (size_t)(2 * k + 1) * channels + c, product, w);        \
  }
    CHUNKS(for (int s = 0; s < slices; s++) BLOCKS(WORK))
#undef ROW_OF
#undef WORK
    for (int s = 0; s < slices; s++)
      for (int c = 0; c < channels; c++) {
        int place = s * channels + c;
        double first = NAME(get)(x + place, 1)[0], all = 0, along = 0;
        for (int k = begin[s]; k < begin[s + 1]; k++) {
          double total = 0, product = 0;
          for (int t = 0; t < threads; t++) {
            total += sums[size * t + (size_t)2 * k * channels + c];
            product += sums[size * t + (size_t)(2 * k + 1) * channels + c];
          }
          product = mean ? (product + (first - mean[place]) * total) * inv[place] : product + first * total;
          all += gates[column[k]] * total;
          along += gates[column[k]] * product;
          if (dgates) dgates[column[k]] += product;
        }
        if (mean) { /* what goes through the moments of the batch */
          double slope = -inv[place] * inv[place] * along / rows;
          b[place] = slope;
          d[place] = -inv[place] * all / rows - slope * mean[place];
        }
      }
    free(sums);
  }
#define WORK(c, w)                                                                                         \
  V y[CHUNK], bc = NAME(of)(b + s * channels + c, w), dc = NAME(of)(d + s * channels + c, w);              \
  int count = end - start, k = begin[s];                                                                   \
  for (int i = 0; i < count; i++) y[i] = dc;                                                               \
  if (mean)                                                                                                \
    for (int i = 0; i < count; i++) y[i] += bc * NAME(get)(x + (start + i) * step + s * channels + c, w);  \
  NAME(gather)(y, begin[s + 1] - k, g + k, g_step + k, a + k * channels, channels, start, count, c, w);    \
  for (int i = 0; i < count; i++) NAME(put)(dx + (start + i) * width + s * channels + c, y[i], w);
  if (dx) { CHUNKS(for (int s = 0; s < slices; s++) BLOCKS(WORK)) }
#undef WORK
  free(a);
}

/* out = the positive part of z = (x - mean) inv. `a` is room for 2 C. */
void NAME(rise)(const T *x, int64_t step, const double *mean, const double *inv, int64_t rows, int channels, int threads,
                A *a, T *out) {
  A *b = a + channels;
  for (int c = 0; c < channels; c++) {
    a[c] = inv[c];
    b[c] = -mean[c] * inv[c];
  }
#define WORK(c, w)                                                     \
  V scale = NAME(of)(a + c, w), shift = NAME(of)(b + c, w);            \
  for (int64_t r = start; r < end; r++) {                              \
    V z = scale * NAME(get)(x + r * step + c, w) + shift;              \
    NAME(put)(out + r * channels + c, NAME(where)(z, z), w);           \
  }
  CHUNKS(BLOCKS(WORK))
#undef WORK
}

/* The gradient of x, where g is that of the above, whose `a` this is. */
void NAME(rise_back)(const T *x, int64_t step, const T *g, int64_t g_step, const double *mean, const double *inv,
                     int64_t rows, int channels, int threads, const A *a, T *dx) {
  const A *b = a + channels;
  A *p = malloc((size_t)2 * channels * sizeof(A)), *q = p + channels;
  size_t size = (size_t)2 * channels;
  double *sums = calloc(size * threads, sizeof(double));
#define ROW_OF(r, j, w)                                                                  \
  V z = scale * NAME(get)(x + (r) * step + c, w) + shift;                                \
  V slope = NAME(where)(z, NAME(get)(g + (r) * g_step + c, w));                          \
  total[j] += slope;                                                                     \
  product[j] += slope * z;
#define WORK(c, w)                                                                       \
  V scale = NAME(of)(a + c, w), shift = NAME(of)(b + c, w);                              \
  V total[4] = {{0}}, product[4] = {{0}};                                                \
  ROWS(ROW_OF, w)                                                                        \
  NAME(add4)(sums + size * t + c, total, w);                                             \
  NAME(add4)(sums + size * t + channels + c, product, w);
  CHUNKS(BLOCKS(WORK))
#undef ROW_OF
#undef WORK
  for (int c = 0; c < channels; c++) {
    double total = 0, product = 0;
    for (int t = 0; t < threads; t++) {
      total += sums[size * t + c];
      product += sums[size * t + channels + c];
    }
    p[c] = -inv[c] * product / rows;
    q[c] = -inv[c] * total / rows;
  }
  free(sums);
#define WORK(c, w)                                                                          \
  V scale = NAME(of)(a + c, w), shift = NAME(of)(b + c, w);                                 \
  V along = NAME(of)(p + c, w), all = NAME(of)(q + c, w);                                   \
  for (int64_t r = start; r < end; r++) {                                                   \
    V z = scale * NAME(get)(x + r * step + c, w) + shift;                                   \
    V slope = NAME(where)(z, NAME(get)(g + r * g_step + c, w));                             \
    NAME(put)(dx + r * channels + c, scale * slope + along * z + all, w);                   \
  }
  CHUNKS(BLOCKS(WORK))
#undef WORK
  free(p);
}

/* Means over 3 x 3 windows that reach past the edges of images (height x width pixels, channels last, dense), of what
   is inside; or, `back`, the gradient of that: each pixel is divided by the size of its window before it is summed. */
void NAME(box)(int64_t images, int height, int width, int channels, int back, int threads, const T *x, T *out) {
  int64_t line = (int64_t)width * channels;
  _Pragma("omp parallel for num_threads(threads) schedule(static) if (threads > 1)")
  for (int64_t i = 0; i < images; i++)
    for (int y = 0; y < height; y++) {
      const T *near[3];
      A tall[3];
      int n = 0;
      for (int v = y > 0 ? y - 1 : 0; v <= y + 1 && v < height; v++) {
        near[n] = x + (i * height + v) * line;
        tall[n++] = back ? (A)1 / ((v > 0) + 1 + (v < height - 1)) : 1;
      }
      A size = back ? 1 : (A)1 / n;
#define COLUMN(to, u, c, w)                                                                 \
  V to = {0};                                                                               \
  for (int m = 0; m < n; m++) to += tall[m] * NAME(get)(near[m] + (u) * channels + c, w);   \
  if (back) to *= (A)1 / (((u) > 0) + 1 + ((u) < width - 1));
#define WORK(c, w)                                                                          \
  V left = {0};                                                                             \
  COLUMN(here, 0, c, w)                                                                     \
  for (int u = 0; u < width; u++) {                                                         \
    V right = {0};                                                                          \
    if (u < width - 1) {                                                                    \
      COLUMN(next, u + 1, c, w)                                                             \
      right = next;                                                                         \
    }                                                                                       \
    A scale = back ? 1 : size / ((u > 0) + 1 + (u < width - 1));                            \
    NAME(put)(out + (i * height + y) * line + u * channels + c, scale * (left + here + right), w); \
    left = here;                                                                            \
    here = right;                                                                           \
  }
      BLOCKS(WORK)
#undef WORK
#undef COLUMN
    }
}

/* What one image row of the gradient g adds to the gradient of a depthwise kernel, w channels from c on. */
INLINE void NAME(kernel_row)(const T *image, const T *g, int y, int height, int width, int channels, const int side,
                             int dilation, int c, const int w, double *sums) {
  int pad = dilation * (side - 1) / 2;
  for (int i = 0; i < side; i++) {
    int v = y + i * dilation - pad;
    if (v < 0 || v >= height) continue;
    V sum[7] = {{0}};
    for (int u = 0; u < width; u++) {
      const T *row = image + ((int64_t)v * width + u - pad) * channels + c;
      V slope = NAME(get)(g + (int64_t)u * channels + c, w);
      if (u >= pad && u < width - pad)
        for (int j = 0; j < side; j++) sum[j] += slope * NAME(get)(row + j * dilation * channels, w);
      else
        for (int j = 0; j < side; j++)
          if (u + j * dilation >= pad && u + j * dilation < width + pad)
            sum[j] += slope * NAME(get)(row + j * dilation * channels, w);
    }
    for (int j = 0; j < side; j++) NAME(add)(sums + (i * side + j) * channels + c, sum[j], w);
  }
}

/* The gradient of the kernels, double [side][side][channels], of a depthwise convolution that keeps the size of images
   (height x width pixels, channels last, dense); g is the gradient of its output. Sides are 3, 5 or 7. */
void NAME(kernel)(int64_t images, int height, int width, int channels, int side, int dilation, int threads, const T *x,
                  const T *g, double *dkernel) {
  int64_t line = (int64_t)width * channels, size = (int64_t)side * side * channels;
  double *sums = calloc(size * threads, sizeof(double));
  _Pragma("omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)")
  for (int t = 0; t < threads; t++)
    for (int64_t i = images * t / threads; i < images * (t + 1) / threads; i++)
      for (int y = 0; y < height; y++) {
        const T *image = x + i * height * line, *slope = g + (i * height + y) * line;
#define WORK_OF(side, c, w) \
  NAME(kernel_row)(image, slope, y, height, width, channels, side, dilation, c, w, sums + size * t);
#define WORK_3(c, w) WORK_OF(3, c, w)
#define WORK_5(c, w) WORK_OF(5, c, w)
#define WORK_7(c, w) WORK_OF(7, c, w)
        if (side == 3) BLOCKS(WORK_3)
        if (side == 5) BLOCKS(WORK_5)
        if (side == 7) BLOCKS(WORK_7)
#undef WORK_3
#undef WORK_5
#undef WORK_7
#undef WORK_OF
      }
  for (int64_t m = 0; m < size; m++) {
    dkernel[m] = 0;
    for (int t = 0; t < threads; t++) dkernel[m] += sums[size * t + m];
  }
  free(sums);
}

#undef ROWS
#undef BLOCKS
#undef CHUNKS
#undef T
#undef ROW
#undef V
#undef A
#undef SUFFIX
#undef WIDE
#undef NARROW
