/* The passes for values of type T (a block of them: ROW), computed in type A (a block: V). Part of rows.c. */

INLINE V NAME(get)(const T *x, const int w) { /* the first w values of a block, zeros behind them */
  ROW row = {0};
  memcpy(&row, x, w * sizeof(T));
  return WIDE(row);
}

INLINE void NAME(put)(T *x, V y, const int w) {
  ROW row = NARROW(y);
  memcpy(x, &row, w * sizeof(T));
}

INLINE V NAME(of)(const A *x, const int w) {
  V y = {0};
  memcpy(&y, x, w * sizeof(A));
  return y;
}

INLINE void NAME(add)(double *sums, V y, const int w) {
  for (int j = 0; j < w; j++) sums[j] += y[j];
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
#define WORK(c, w)                                              \
  V first = NAME(get)(x + c, w), s = {0}, q = {0};              \
  for (int64_t r = start; r < end; r++) {                       \
    V d = NAME(get)(x + r * step + c, w) - first;               \
    s += d;                                                     \
    q += d * d;                                                 \
  }                                                             \
  NAME(add)(sums + (size_t)2 * channels * t + c, s, w);         \
  NAME(add)(sums + (size_t)2 * channels * t + channels + c, q, w);
  CHUNKS(BLOCKS(WORK))
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
#define WORK(c, w)                                                                    \
  V sum = NAME(of)(b + c, w);                                                         \
  for (int k = 0; k < n; k++)                                                         \
    sum += NAME(of)(a + k * channels + c, w) * NAME(get)(x[k] + r * step[k] + c, w);  \
  NAME(put)(out + r * channels + c, sum, w);
  CHUNKS(for (int64_t r = start; r < end; r++) BLOCKS(WORK))
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
#define WORK(c, w)                                                         \
  V first = NAME(get)(x + s * channels + c, w);                            \
  for (int k = begin[s]; k < begin[s + 1]; k++) {                          \
    V total = {0}, product = {0};                                          \
    for (int64_t r = start; r < end; r++) {                                \
      V slope = NAME(get)(g[k] + r * g_step[k] + c, w);                    \
      total += slope;                                                      \
      product += slope * (NAME(get)(x + r * step + s * channels + c, w) - first); \
    }                                                                      \
    NAME(add)(sums + size * t + (size_t)2 * k * channels + c, total, w);   \
    NAME(add)(sums + size * t + (size_t)(2 * k + 1) * channels + c, product, w); \
  }
    CHUNKS(for (int s = 0; s < slices; s++) BLOCKS(WORK))
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
#define WORK(c, w)                                                                        \
  V bc = NAME(of)(b + s * channels + c, w), dc = NAME(of)(d + s * channels + c, w);       \
  for (int64_t r = start; r < end; r++) {                                                 \
    V sum = dc;                                                                           \
    if (mean) sum += bc * NAME(get)(x + r * step + s * channels + c, w);                  \
    for (int k = begin[s]; k < begin[s + 1]; k++)                                         \
      sum += NAME(of)(a + k * channels + c, w) * NAME(get)(g[k] + r * g_step[k] + c, w);  \
    NAME(put)(dx + r * width + s * channels + c, sum, w);                                 \
  }
  if (dx) { CHUNKS(for (int s = 0; s < slices; s++) BLOCKS(WORK)) }
#undef WORK
  free(a);
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

#undef BLOCKS
#undef CHUNKS
#undef T
#undef ROW
#undef V
#undef A
#undef SUFFIX
#undef WIDE
#undef NARROW
