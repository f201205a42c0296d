/* Depthwise convolutions with a 1 x 1 convolution behind them, of images with their channels last, and their gradients.
   Part of rows.c.

   Units are such pairs that take the same input. It is read once for all of them, and one gradient is written. What lies
   between the two convolutions, the normalised positive part that they may take, and the gradient of a norm behind them
   are never in memory: they are made on a bench of a thread's own, an image at a time, and made again on the way back. On
   a bench an image is blocks of channels one behind the other, zeros behind the last channel, in the type that is computed
   in. A block is lines of pixels, with zeros beside them, so that the loops over pixels ask nothing. */

#if BLOCK > 8
#define TOGETHER 8 /* so many pixels or channels beside them */
#else
#define TOGETHER 4
#endif
#define TAPS 49 /* of a kernel, at most */

typedef A lone __attribute__((may_alias)); /* one value of a block */

/* One pair: kernels taps[in][side][side] and point[out][in], padded so that at stride 1 the size is kept. Taps null: the
   1 x 1 convolution alone, of side 1. */
typedef struct {
  int side, dilation, out;
  const A *taps, *point;
  T *y;                                       /* the output */
  double eps, momentum, *mean, *inv;          /* its moments, as `moments` has them; null: none are wanted */
  A *running_mean, *running_var;
  const T *g;                                 /* the gradient of the output, rows `step` apart; with a gate, */
  int64_t step;                               /* of the sum that the output goes to through it, normalised */
  const A *gate;                              /* where it has moments */
  A *of_gate, *dtaps, *dpoint;                /* gradients; null: not wanted */
} Unit;

typedef struct {
  const Unit *unit;
  int reach;                           /* pixels that the kernel sees to either side */
  const A *taps, *point;               /* with zeros behind the channels */
  A *own, *all, *along;                /* the output's gradient is own g + along y + all; null: it is g */
  int64_t place;                       /* blocks of the bench's sums for the 1 x 1 kernels before its own */
} Pair;

typedef struct {
  int height, width, out_height, out_width, in, stride, threads, n;
  int pad, wide;       /* zeros beside a line of the input, pixels of a line with them */
  int left, span;      /* the same for a line of gradients of what lies between */
  int band;            /* lines of the output that are dealt with together */
  int columns, widest; /* of the input's channels, with those that are zeros; of the output with most */
  int bare;            /* all units are 1 x 1 convolutions of every pixel: what they take is what lies between */
  int64_t images, points, head; /* all 1 x 1 sums, and what all threads read, in blocks */
  const A *scale, *shift;       /* what normalises the input, or null */
} Plan;

/* What a thread works in: the input, what lies between, its gradient, the input's gradient, some lines of the output or
   of its gradient, and sums for the gradients of the 1 x 1 kernels. */
typedef struct {
  V *in, *between, *slope, *grad, *out, *point;
} Bench;

static int reach_of(const Unit *u) { return u->dilation * (u->side - 1) / 2; }

static Plan plan_of(int n, const Unit *units, int64_t images, int height, int width, int in, int stride, int threads) {
  Plan p = {height, width, (height - 1) / stride + 1, (width - 1) / stride + 1, in, stride, threads, n};
  p.columns = columns_of(in);
  p.images = images;
  p.head = 2 * p.columns / BLOCK;
  p.bare = stride == 1;
  for (int k = 0; k < n; k++) {
    const Unit *u = units + k;
    p.bare &= !u->taps;
    if (reach_of(u) > p.pad) p.pad = reach_of(u);
    if (columns_of(u->out) > p.widest) p.widest = columns_of(u->out);
    p.points += (int64_t)p.columns * u->out / BLOCK;
    p.head += ((int64_t)p.columns * (u->side * u->side + columns_of(u->out)) + 3 * columns_of(u->out)) / BLOCK;
  }
  p.wide = width + 2 * p.pad;
  p.left = p.pad / stride;
  p.span = p.left + (width - 1 + p.pad) / stride + 1;
  p.band = CHUNK / p.out_width + 1;
  return p;
}

static int64_t blocks_in(const Plan *p, int64_t height, int wide) { return p->columns / BLOCK * height * wide; }

/* Blocks of a bench; where `at` is told, it is laid out from there. */
static int64_t lay(const Plan *p, V *at, Bench *d) {
  int64_t all = 0, sizes[6] = {blocks_in(p, p->height, p->wide),
                               p->bare ? 0 : blocks_in(p, p->out_height, p->out_width),
                               p->bare ? 0 : blocks_in(p, p->out_height, p->span),
                               blocks_in(p, p->height, p->width),
                               (int64_t)p->widest / BLOCK * p->band * p->out_width,
                               p->points};
  for (int k = 0; k < 6; k++) all += sizes[k];
  if (!at) return all;
  memset(at, 0, all * sizeof(V));
  V **to[6] = {&d->in, &d->between, &d->slope, &d->grad, &d->out, &d->point};
  for (int k = 0; k < 6; at += sizes[k], k++) *to[k] = at;
  if (p->bare) d->between = d->in; /* and the slope is the gradient: both begin at the same place */
  return all;
}

/* Numbers that this takes. Who calls keeps them: new ones would be new pages. */
int64_t separable_room(int n, const Unit *units, int64_t images, int height, int width, int in, int stride, int threads) {
  Plan p = plan_of(n, units, images, height, width, in, stride, threads);
  return (p.head + threads * lay(&p, 0, 0) + 1) * BLOCK;
}

static V *aligned(A *own) { return (V *)(((uintptr_t)own + sizeof(V) - 1) / sizeof(V) * sizeof(V)); }

static Bench bench_at(const Plan *p, V *first, int thread) {
  Bench d;
  lay(p, first + p->head + thread * lay(p, 0, 0), &d);
  return d;
}

/* Lay out what all threads read: moments and taps with zeros behind their channels, and the 1 x 1 kernels
   u[columns of b][a][COLUMNS] from a channels to b: forward from the input's to the output's, or back. */
static void prepare(Plan *p, const Unit *units, Pair *pairs, A *to, const double *mean, const double *inv, int back) {
  int columns = p->columns;
  memset(to, 0, p->head * sizeof(V));
  for (int c = 0; mean && c < p->in; c++) {
    to[c] = inv[c];
    to[columns + c] = -mean[c] * inv[c];
  }
  if (mean) p->scale = to, p->shift = to + columns;
  to += 2 * columns;
  int64_t place = 0;
  for (int k = 0; k < p->n; k++) {
    const Unit *unit = units + k;
    int n = unit->side * unit->side, outs = columns_of(unit->out), a = back ? unit->out : p->in;
    int b = back ? p->in : unit->out;
    A *u = to + n * columns, *ends = u + (int64_t)columns * outs;
    for (int t = 0; t < n; t++)
      for (int c = 0; c < p->in; c++) to[t * columns + c] = unit->taps ? unit->taps[c * n + t] : 1;
    for (int j = 0; j < b; j++)
      for (int i = 0; i < a; i++)
        u[((int64_t)(j / COLUMNS) * a + i) * COLUMNS + j % COLUMNS] =
            unit->point[back ? (int64_t)i * p->in + j : (int64_t)j * p->in + i];
    pairs[k] = (Pair){unit, reach_of(unit), to, u, unit->gate ? ends : 0, ends + outs, ends + 2 * outs, place};
    place += (int64_t)columns * unit->out / BLOCK;
    to = ends + 3 * outs;
  }
}

INLINE V get_some(const T *x, int w) { /* up to a block of values, zeros behind them */
  if (w >= BLOCK) return get(x, BLOCK);
  if (w == BLOCK / 2) return get(x, BLOCK / 2);
  T some[BLOCK] = {0};
  for (int j = 0; j < w; j++) some[j] = x[j];
  return get(some, BLOCK);
}

INLINE void put_some(T *x, V y, int w) { /* its first w values, a block at most */
  if (w >= BLOCK) put(x, y, BLOCK);
  else if (w == BLOCK / 2) put(x, y, BLOCK / 2);
  else {
    ROW row = NARROW(y); /* and not an array: beside one, what calls this keeps no sums in registers */
    for (int j = 0; j < w; j++) x[j] = row[j];
  }
}

/* `count` rows of values, `step` apart, to blocks, those of one row `apart`, with zeros behind the last; and back. */
static OWN void get_rows(const T *rows, int64_t step, int channels, int count, V *to, int64_t apart) {
  for (int t = 0; t < count; t++, rows += step, to++) {
    V *block = to;
    int c = 0;
    for (; c + BLOCK <= channels; c += BLOCK, block += apart) *block = get(rows + c, BLOCK);
    if (c < channels) *block = get_some(rows + c, channels - c);
  }
}

/* `past`: they will not be read again soon. */
static OWN void put_rows(const V *from, int64_t apart, int channels, int count, T *rows, int past) {
  for (int t = 0; t < count; t++, rows += channels, from++) {
    const V *block = from;
    int c = 0;
#ifdef PAST /* the caches, which need not fetch what is overwritten */
    if (past && channels % BLOCK == 0 && (uintptr_t)rows % sizeof(ROW) == 0) {
      for (; c < channels; c += BLOCK, block += apart) PAST(rows + c, NARROW(*block));
      continue;
    }
#endif
    for (; c + BLOCK <= channels; c += BLOCK, block += apart) put(rows + c, *block, BLOCK);
    if (c < channels) put_some(rows + c, *block, channels - c);
  }
}

/* Put an image on the bench; where there are moments, its normalised positive part. */
static void put_in(const Plan *p, const Bench *d, const T *image, int64_t step) {
  int64_t apart = (int64_t)p->height * p->wide;
  for (int v = 0; v < p->height; v++) {
    V *row = d->in + (int64_t)v * p->wide + p->pad;
    get_rows(image + (int64_t)v * p->width * step, step, p->in, p->width, row, apart);
    for (int c = 0; c < p->in && p->scale; c += BLOCK, row += apart) {
      V by = of(p->scale + c, BLOCK), plus = of(p->shift + c, BLOCK);
      for (int u = 0; u < p->width; u++) {
        V x = by * row[u] + plus;
        row[u] = where(x, x);
      }
    }
  }
}

/* to[n * apart] = sum over taps t of kernel_t from_t[n * far], for `count` pixels; `more`: added to what is there. */
INLINE void pixel_sums(int taps, const V *kernel, const V **from, int count, V *to, const int far, const int apart,
                       const int more) {
#define SUMS(m)                                                                              \
  V sum[m];                                                                                  \
  _Pragma("GCC unroll 8") for (int q = 0; q < m; q++)                                        \
    sum[q] = more ? to[(int64_t)(n + q) * apart] : (V){0};                                   \
  for (int t = 0; t < taps; t++) {                                                           \
    const V *at = from[t] + (int64_t)n * far;                                                \
    V by = kernel[t];                                                                        \
    _Pragma("GCC unroll 8") for (int q = 0; q < m; q++) sum[q] += by * at[(int64_t)q * far]; \
  }                                                                                          \
  _Pragma("GCC unroll 8") for (int q = 0; q < m; q++) to[(int64_t)(n + q) * apart] = sum[q];
  int n = 0;
  for (; n + 8 <= count; n += 8) { SUMS(8) }
  for (; n + 4 <= count; n += 4) { SUMS(4) }
  for (; n < count; n++) { SUMS(1) }
#undef SUMS
}

/* What lies between: the depthwise convolution of a block of an image's channels, from c on. */
static OWN void convolve(const Plan *p, const Pair *pair, const Bench *d, int c) {
  if (p->bare) return; /* it is there */
  const V *in = d->in + (int64_t)(c / BLOCK) * p->height * p->wide + p->pad - pair->reach;
  V k[TAPS], *to = d->between + (int64_t)(c / BLOCK) * p->out_height * p->out_width;
  const V *from[TAPS];
  int side = pair->unit->side, dilation = pair->unit->dilation;
  for (int y = 0; y < p->out_height; y++, to += p->out_width) {
    int n = 0;
    for (int i = 0; i < side; i++) {
      int v = y * p->stride + i * dilation - pair->reach;
      if (v < 0 || v >= p->height) continue;
      for (int j = 0; j < side; j++) {
        k[n] = of(pair->taps + (i * side + j) * p->columns + c, BLOCK);
        from[n++] = in + (int64_t)v * p->wide + j * dilation;
      }
    }
    if (p->stride == 1) pixel_sums(n, k, from, p->out_width, to, 1, 1, 0);
    else pixel_sums(n, k, from, p->out_width, to, p->stride, 1, 0);
  }
}

/* To the gradient of the input, a block from c on, what one pair adds: to pixel v it is the sum over i of kernel[i]
   g[(v + reach - i dilation) / stride], along both axes, over those i for which that is a pixel of g. */
static OWN void convolve_back(const Plan *p, const Pair *pair, const Bench *d, int c, int more) {
  if (p->bare) return; /* it is there */
  const V *slope = d->slope + (int64_t)(c / BLOCK) * p->out_height * p->span + p->left;
  V k[TAPS], *to = d->grad + (int64_t)(c / BLOCK) * p->height * p->width;
  const V *from[TAPS];
  int side = pair->unit->side, dilation = pair->unit->dilation, stride = p->stride;
  for (int v = 0; v < p->height; v++, to += p->width)
    for (int u = 0; u < stride && u < p->width; u++) { /* every stride-th pixel from u on has the same taps */
      int n = 0;
      for (int i = 0; i < side; i++) {
        int y = v + pair->reach - i * dilation;
        if (y < 0 || y % stride || y / stride >= p->out_height) continue;
        for (int j = 0; j < side; j++) {
          int at = u + pair->reach - j * dilation;
          if (at % stride) continue;
          k[n] = of(pair->taps + (i * side + j) * p->columns + c, BLOCK);
          from[n++] = slope + (int64_t)(y / stride) * p->span + at / stride;
        }
      }
      if (stride > 1) pixel_sums(n, k, from, (p->width - u + stride - 1) / stride, to + u, 1, stride, more);
      else if (more) pixel_sums(n, k, from, p->width, to, 1, 1, 1);
      else pixel_sums(n, k, from, p->width, to, 1, 1, 0);
    }
}

/* What lines of g, from `first` up to `end`, add to line i of the gradient of a depthwise kernel. */
INLINE void tap_line(const Plan *p, const Pair *pair, const V *x, const V *g, int i, int first, int end, const int side,
                     double *sums) {
  V sum[7] = {{0}}, more[7] = {{0}}; /* two of each, so that they do not wait for one another */
  int dilation = pair->unit->dilation, stride = p->stride;
  for (int y = first; y < end; y++) {
    int v = y * stride + i * dilation - pair->reach;
    if (v < 0 || v >= p->height) continue;
    const V *row = x + (int64_t)v * p->wide, *slope = g + (int64_t)y * p->span;
    int u = 0;
    for (; u + 2 <= p->out_width; u += 2) {
      V one = slope[u], two = slope[u + 1];
      _Pragma("GCC unroll 7") for (int j = 0; j < side; j++) {
        sum[j] += one * row[u * stride + j * dilation];
        more[j] += two * row[(u + 1) * stride + j * dilation];
      }
    }
    for (; u < p->out_width; u++)
      _Pragma("GCC unroll 7") for (int j = 0; j < side; j++) sum[j] += slope[u] * row[u * stride + j * dilation];
  }
  for (int j = 0; j < side; j++) add(sums + (i * side + j) * p->columns, sum[j] + more[j], BLOCK);
}

/* What a block of an image's channels, from c on, adds to the gradient of their depthwise kernels. */
static OWN void tap_sums(const Plan *p, const Pair *pair, const Bench *d, int c, double *sums) {
  const V *in = d->in + (int64_t)(c / BLOCK) * p->height * p->wide + p->pad - pair->reach;
  const V *slope = d->slope + (int64_t)(c / BLOCK) * p->out_height * p->span + p->left;
  for (int y = 0; y < p->out_height; y += p->band)
    for (int i = 0; i < pair->unit->side; i++) {
      int end = y + p->band < p->out_height ? y + p->band : p->out_height;
      if (pair->unit->side == 3) tap_line(p, pair, in, slope, i, y, end, 3, sums + c);
      if (pair->unit->side == 5) tap_line(p, pair, in, slope, i, y, end, 5, sums + c);
      if (pair->unit->side == 7) tap_line(p, pair, in, slope, i, y, end, 7, sums + c);
    }
}

/* How many blocks of a column of a product of matrices have any of the channels that are left. */
static int filled(int left) { return left > BLOCK ? SIDEWAYS : 1; }

/* to[l][t] = the sum over channels c of pixel t's channel c in `from`, times u[c][l], l counting a column's filled blocks:
   the 1 x 1 convolution of `count` pixels; `more`: added to what is there. Blocks of `from` are `far` apart, those of `to`
   are `apart`. */
static OWN void points(const V *from, int64_t far, int channels, const A *u, int blocks, int count, V *to, int64_t apart,
                       int more) {
#define POINTS(n, m)                                                  \
  {                                                                   \
    V sum[n][m];                                                      \
    EACH(q, n) EACH(l, m) sum[q][l] = (V){0};                         \
    if (more) EACH(q, n) EACH(l, m) sum[q][l] = to[l * apart + t + q]; \
    const lone *pixel = (const lone *)(from + t);                     \
    const A *by = u;                                                  \
    for (int c = 0; c < channels; c += BLOCK, pixel += far * BLOCK) { \
      int some = channels - c < BLOCK ? channels - c : BLOCK;         \
      for (int j = 0; j < some; j++, by += COLUMNS) {                 \
        V row[m];                                                     \
        EACH(l, m) {                                                  \
          row[l] = of(by + l * BLOCK, BLOCK);                         \
          HELD(row[l])                                                \
        }                                                             \
        EACH(q, n) {                                                  \
          A x = pixel[q * BLOCK + j];                                 \
          EACH(l, m) sum[q][l] += x * row[l];                         \
        }                                                             \
      }                                                               \
    }                                                                 \
    EACH(q, n) EACH(l, m) to[l * apart + t + q] = sum[q][l];          \
  }
  int t = 0;
  if (blocks < SIDEWAYS)
    for (; t + SIDEWAYS * TOGETHER <= count; t += SIDEWAYS * TOGETHER) POINTS(SIDEWAYS * TOGETHER, 1)
  for (; t + TOGETHER <= count; t += TOGETHER) POINTS(TOGETHER, SIDEWAYS)
  for (; t < count; t++) POINTS(1, SIDEWAYS)
#undef POINTS
}

/* to[out][columns of the input] += sum over `count` pixels of their gradients times what lies between. */
static OWN void outer_points(const Plan *p, int outs, const V *out, int64_t far, const V *between, int count, V *to) {
  int64_t apart = (int64_t)p->out_height * p->out_width;
  int wide = p->columns / BLOCK;
#define OUTER(n, m)                                                              \
  {                                                                              \
    V sum[n][m];                                                                 \
    EACH(j, n) EACH(l, m) sum[j][l] = (V){0};                                    \
    const lone *rows = (const lone *)(out + o / BLOCK * far) + o % BLOCK;        \
    const V *mine = between + c * apart;                                         \
    for (int t = 0; t < count; t++) {                                            \
      V by[m];                                                                   \
      EACH(l, m) {                                                               \
        by[l] = mine[l * apart + t];                                             \
        HELD(by[l])                                                              \
      }                                                                          \
      EACH(j, n) {                                                               \
        A g = rows[t * BLOCK + j];                                               \
        EACH(l, m) sum[j][l] += g * by[l];                                       \
      }                                                                          \
    }                                                                            \
    EACH(j, n) EACH(l, m) to[(int64_t)(o + j) * wide + c + l] += sum[j][l];      \
  }
  for (int c = 0; c * BLOCK < p->in; c += SIDEWAYS) {
    int o = 0;
    if (filled(p->in - c * BLOCK) < SIDEWAYS)
      for (; o + SIDEWAYS * TOGETHER <= outs; o += SIDEWAYS * TOGETHER) OUTER(SIDEWAYS * TOGETHER, 1)
    for (; o + TOGETHER <= outs; o += TOGETHER) OUTER(TOGETHER, SIDEWAYS)
    for (; o < outs; o++) OUTER(1, SIDEWAYS)
  }
#undef OUTER
}
