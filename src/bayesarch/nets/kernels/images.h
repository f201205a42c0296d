/* Passes over images: means over windows, gradients of depthwise kernels. Part of rows.c. */

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
  for (int64_t m = 0; m < size; m++) dkernel[m] = whole(sums, size, threads, m);
  free(sums);
}
