/* Passes over rows of channels: moments, gated sums, sums of gradients. Part of rows.c. */

/* Set mean[c] and inv[c], where there are `rows` values and `square` is the sum of their squared distances to their
   `middle`, and move the running moments. */
static void told(double middle, double square, double rows, int c, double eps, double momentum, A *running_mean,
                 A *running_var, double *mean, double *inv) {
  double var = square < 0 ? 0 : square / rows;
  mean[c] = middle;
  inv[c] = 1 / sqrt(var + eps);
  running_mean[c] += momentum * (middle - running_mean[c]);
  running_var[c] += momentum * (var * rows / (rows > 1 ? rows - 1 : 1) - running_var[c]);
}

/* The same of images that threads have dealt among themselves, from what each has: of `wide` channels the first value,
   behind those the sums of values less that, and of their squares. */
static void told_of(int64_t images, int64_t pixels, int threads, const double *sums, int wide, int channels, double eps,
                    double momentum, A *running_mean, A *running_var, double *mean, double *inv) {
  for (int c = 0; c < channels; c++) {
    double n = 0, middle = 0, square = 0; /* of what has been counted: mean, and sum of squared distances to it */
    for (int thread = 0; thread < threads; thread++) {
      const double *mine = sums + (size_t)3 * wide * thread + c;
      int64_t some = images * (thread + 1) / threads - images * thread / threads;
      double m = (double)some * pixels;
      if (!some) continue;
      double shift = mine[wide] / m, away = mine[0] + shift - middle;
      square += mine[2 * wide] - shift * shift * m + away * away * n * m / (n + m);
      middle += away * m / (n + m);
      n += m;
    }
    told(middle, square, n, c, eps, momentum, running_mean, running_var, mean, inv);
  }
}

/* Moments over rows: mean[c], and inv[c] = 1 / sqrt(variance + eps). Running moments go `momentum` of the way there, the
   variance by its unbiased estimate. Sums are of differences to the first row, so that little cancels. */
void moments(const T *x, int64_t step, int64_t rows, int channels, int threads, double eps, double momentum,
             A *running_mean, A *running_var, double *mean, double *inv) {
  size_t size = (size_t)2 * channels;
  double *sums = calloc(size * threads, sizeof(double));
#define ROW_OF(r, j, w)                     \
  V d = get(x + (r) * step + c, w) - first; \
  s[j] += d;                                \
  q[j] += d * d;
#define WORK(c, w)                                     \
  V first = get(x + c, w), s[4] = {{0}}, q[4] = {{0}}; \
  ROWS(ROW_OF, w)                                      \
  add4(sums + size * t + c, s, w);                     \
  add4(sums + size * t + channels + c, q, w);
  CHUNKS(BLOCKS(WORK))
#undef ROW_OF
#undef WORK
  for (int c = 0; c < channels; c++) {
    double shift = whole(sums, size, threads, c) / rows;
    double square = whole(sums, size, threads, channels + c) - shift * shift * rows;
    told(get(x + c, 1)[0] + shift, square, rows, c, eps, momentum, running_mean, running_var, mean, inv);
  }
  free(sums);
}

/* out = sum over k of gate_k (x_k - mean_k) inv_k; where mean_k is null, of gate_k x_k. `a` is room for (n + 1) C. */
void sum(int n, const T **x, const int64_t *step, const A **gate, const double **mean, const double **inv,
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
#define WORK(c, w)                                        \
  V y[CHUNK], shift = of(b + c, w);                       \
  int count = end - start;                                \
  for (int i = 0; i < count; i++) y[i] = shift;           \
  gather(y, n, x, step, a, channels, start, count, c, w); \
  for (int i = 0; i < count; i++) put(out + (start + i) * channels + c, y[i], w);
  CHUNKS(BLOCKS(WORK))
#undef WORK
}

/* dx = the sum of n gradients; the first `risen` of them count where x is positive or no number. */
void fan(int n, int risen, const T **g, const int64_t *step, const T *x, int64_t x_step, int64_t rows, int channels,
         int threads, T *dx) {
#define WORK(c, w)                                                                            \
  V y[CHUNK];                                                                                 \
  int count = end - start;                                                                    \
  for (int i = 0; i < count; i++) y[i] = (V){0};                                              \
  gather(y, risen, g, step, 0, channels, start, count, c, w);                                 \
  if (risen)                                                                                  \
    for (int i = 0; i < count; i++) y[i] = where(get(x + (start + i) * x_step + c, w), y[i]); \
  gather(y, n - risen, g + risen, step + risen, 0, channels, start, count, c, w);             \
  for (int i = 0; i < count; i++) put(dx + (start + i) * channels + c, y[i], w);
  CHUNKS(BLOCKS(WORK))
#undef WORK
}

/* The gradient of x through the moments of the batch is all + along x, where these are the sums, over rows, of the gradient
   of what is normalised and of it times that. */
static void normed(double sum, double product, double mean, double inv, double rows, A *all, A *along) {
  double slope = -inv * inv * product / rows;
  *along = slope;
  *all = -inv * sum / rows - slope * mean;
}

/* Gradients of `slices` tensors that lie side by side in x, `channels` each. Slice s goes to the sums begin[s] up to
   begin[s + 1], whose gradients are g_k, through the gates of these columns. Wanted are the gradient of x (dx null: it is
   not) and those of gates (dgates null: they are not). `mean` null: x is not normalised. */
void back(int slices, const int *begin, const T **g, const int64_t *g_step, const A *gates, const int *column,
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
#define ROW_OF(r, j, w)               \
  V slope = get(from + (r) * far, w); \
  total[j] += slope;                  \
  product[j] += slope * (get(x + (r) * step + s * channels + c, w) - first);
#define WORK(c, w)                                                          \
  V first = get(x + s * channels + c, w);                                   \
  for (int k = begin[s]; k < begin[s + 1]; k++) {                           \
    const T *from = g[k] + c;                                               \
    int64_t far = g_step[k];                                                \
    V total[4] = {{0}}, product[4] = {{0}};                                 \
    ROWS(ROW_OF, w)                                                         \
    add4(sums + size * t + (size_t)2 * k * channels + c, total, w);         \
    add4(sums + size * t + (size_t)(2 * k + 1) * channels + c, product, w); \
  }
    CHUNKS(for (int s = 0; s < slices; s++) BLOCKS(WORK))
#undef ROW_OF
#undef WORK
    for (int s = 0; s < slices; s++)
      for (int c = 0; c < channels; c++) {
        int place = s * channels + c;
        double first = get(x + place, 1)[0], all = 0, along = 0;
        for (int k = begin[s]; k < begin[s + 1]; k++) {
          double total = whole(sums, size, threads, (size_t)2 * k * channels + c);
          double product = whole(sums, size, threads, (size_t)(2 * k + 1) * channels + c);
          product = mean ? (product + (first - mean[place]) * total) * inv[place] : product + first * total;
          all += gates[column[k]] * total;
          along += gates[column[k]] * product;
          if (dgates) dgates[column[k]] += product;
        }
        if (mean) normed(all, along, mean[place], inv[place], rows, d + place, b + place);
      }
    free(sums);
  }
#define WORK(c, w)                                                                                  \
  V y[CHUNK], bc = of(b + s * channels + c, w), dc = of(d + s * channels + c, w);                   \
  int count = end - start, k = begin[s];                                                            \
  for (int i = 0; i < count; i++) y[i] = dc;                                                        \
  if (mean)                                                                                         \
    for (int i = 0; i < count; i++) y[i] += bc * get(x + (start + i) * step + s * channels + c, w); \
  gather(y, begin[s + 1] - k, g + k, g_step + k, a + k * channels, channels, start, count, c, w);   \
  for (int i = 0; i < count; i++) put(dx + (start + i) * width + s * channels + c, y[i], w);
  if (dx) { CHUNKS(for (int s = 0; s < slices; s++) BLOCKS(WORK)) }
#undef WORK
  free(a);
}

/* out = the positive part of z = (x - mean) inv. `a` is room for 2 C. */
void rise(const T *x, int64_t step, const double *mean, const double *inv, int64_t rows, int channels, int threads,
          A *a, T *out) {
  A *b = a + channels;
  for (int c = 0; c < channels; c++) {
    a[c] = inv[c];
    b[c] = -mean[c] * inv[c];
  }
#define WORK(c, w)                                  \
  V scale = of(a + c, w), shift = of(b + c, w);     \
  for (int64_t r = start; r < end; r++) {           \
    V z = scale * get(x + r * step + c, w) + shift; \
    put(out + r * channels + c, where(z, z), w);    \
  }
  CHUNKS(BLOCKS(WORK))
#undef WORK
}

/* dx = what a gradient g of the positive part of z = scale x + shift becomes through it and the moments of the batch; each
   thread's `size` sums are those of g where z is positive and, `apart` behind, of it times z. dx may be g. */
static void fall(const T *x, int64_t step, const T *g, int64_t g_step, const A *scale_of, const A *shift_of, int64_t rows,
                 int channels, int threads, const double *sums, size_t size, int apart, T *dx) {
  A *p = malloc((size_t)2 * channels * sizeof(A)), *q = p + channels;
  for (int c = 0; c < channels; c++) {
    p[c] = -scale_of[c] * whole(sums, size, threads, apart + c) / rows;
    q[c] = -scale_of[c] * whole(sums, size, threads, c) / rows;
  }
#define WORK(c, w)                                                  \
  V scale = of(scale_of + c, w), shift = of(shift_of + c, w);       \
  V along = of(p + c, w), all = of(q + c, w);                       \
  for (int64_t r = start; r < end; r++) {                           \
    V z = scale * get(x + r * step + c, w) + shift;                 \
    V slope = where(z, get(g + r * g_step + c, w));                 \
    put(dx + r * channels + c, scale * slope + along * z + all, w); \
  }
  CHUNKS(BLOCKS(WORK))
#undef WORK
  free(p);
}

/* The gradient of x, where g is that of the above, whose `a` this is. */
void rise_back(const T *x, int64_t step, const T *g, int64_t g_step, const double *mean, const double *inv,
               int64_t rows, int channels, int threads, const A *a, T *dx) {
  const A *b = a + channels;
  size_t size = (size_t)2 * channels;
  double *sums = calloc(size * threads, sizeof(double));
#define ROW_OF(r, j, w)                             \
  V z = scale * get(x + (r) * step + c, w) + shift; \
  V slope = where(z, get(g + (r) * g_step + c, w)); \
  total[j] += slope;                                \
  product[j] += slope * z;
#define WORK(c, w)                              \
  V scale = of(a + c, w), shift = of(b + c, w); \
  V total[4] = {{0}}, product[4] = {{0}};       \
  ROWS(ROW_OF, w)                               \
  add4(sums + size * t + c, total, w);          \
  add4(sums + size * t + channels + c, product, w);
  CHUNKS(BLOCKS(WORK))
#undef ROW_OF
#undef WORK
  fall(x, step, g, g_step, a, b, rows, channels, threads, sums, size, channels, dx);
  free(sums);
}
