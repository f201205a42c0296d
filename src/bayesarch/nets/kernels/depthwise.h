/* Depthwise convolutions of images with their channels last, and their gradients. Part of rows.c.

   An image is taken `w` channels at a time to a scratch of blocks, in the type that is computed in and with zeros beside
   its lines, so that the loops over pixels ask nothing and read from the nearest cache. */

/* out[n] = sum over taps t of kernel_t from_t[n], for `count` pixels `far` values apart. */
INLINE void line(int taps, const V *kernel, const V **from, int count, T *out, int64_t far, const int w) {
#define SUMS(m)                                                                               \
  V sum[m] = {{0}};                                                                           \
  for (int t = 0; t < taps; t++)                                                              \
    _Pragma("GCC unroll 8") for (int q = 0; q < m; q++) sum[q] += kernel[t] * from[t][n + q]; \
  _Pragma("GCC unroll 8") for (int q = 0; q < m; q++) put(out + (n + q) * far, sum[q], w);
  int n = 0;
  for (; n + 8 <= count; n += 8) { SUMS(8) }
  for (; n < count; n++) { SUMS(1) }
#undef SUMS
}

/* Put w channels of an image (`height` lines of `width` pixels, `channels` values apart) into lines `wide` blocks apart. */
INLINE void unfold(const T *image, int height, int width, int channels, V *to, int wide, const int w) {
  for (int v = 0; v < height; v++)
    for (int u = 0; u < width; u++) to[(int64_t)v * wide + u] = get(image + ((int64_t)v * width + u) * channels, w);
}

/* The gradient of the input, where g is that of the output: dx[v] = sum over i of kernel[i] g[(v + pad - i dilation) /
   stride], along both axes, over those i for which that is a pixel of g; pad = dilation (side - 1) / 2. The kernel is
   [side][side][channels]; sides are up to 7. */
void depth_back(int64_t images, int height, int width, int out_height, int out_width, int channels, int side,
                int dilation, int stride, int threads, const T *g, const A *kernel, T *dx) {
  int pad = dilation * (side - 1) / 2, left = pad / stride, wide = left + (width - 1 + pad) / stride + 1;
  _Pragma("omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)")
  for (int thread = 0; thread < threads; thread++) {
    V *room = blocks((int64_t)out_height * wide), k[49];
    const V *from[49];
    for (int64_t b = images * thread / threads; b < images * (thread + 1) / threads; b++) {
#define WORK(c, w)                                                                                              \
  unfold(g + b * out_height * out_width * channels + c, out_height, out_width, channels, room + left, wide, w); \
  for (int v = 0; v < height; v++)                                                                              \
    for (int u = 0; u < stride && u < width; u++) { /* every stride-th pixel from u on has the same taps */     \
      int taps = 0;                                                                                             \
      for (int i = 0; i < side; i++)                                                                            \
        for (int j = 0; j < side; j++) {                                                                        \
          int y = v + pad - i * dilation, at = u + pad - j * dilation;                                          \
          if (y < 0 || y % stride || y / stride >= out_height || at % stride) continue;                         \
          k[taps] = of(kernel + (i * side + j) * channels + c, w);                                              \
          from[taps++] = room + (int64_t)(y / stride) * wide + left + at / stride;                              \
        }                                                                                                       \
      T *to = dx + ((b * height + v) * width + u) * channels + c;                                               \
      line(taps, k, from, (width - u + stride - 1) / stride, to, (int64_t)stride * channels, w);                \
    }
      BLOCKS(WORK)
#undef WORK
    }
    free(room);
  }
}

/* What lines of g, from `first` up to `end`, add to line i of the gradient of a kernel. */
INLINE void kernel_line(const V *x, const V *g, int i, int first, int end, int height, int wide, int out_width,
                        const int side, int dilation, int stride, int channels, const int w, double *sums) {
  V sum[7] = {{0}}, more[7] = {{0}}; /* two of each, so that they do not wait for one another */
  int pad = dilation * (side - 1) / 2;
  for (int y = first; y < end; y++) {
    int v = y * stride + i * dilation - pad;
    if (v < 0 || v >= height) continue;
    const V *row = x + (int64_t)v * wide, *slope = g + (int64_t)y * out_width;
    int u = 0;
    for (; u + 2 <= out_width; u += 2) {
      V one = slope[u], two = slope[u + 1];
      _Pragma("GCC unroll 7") for (int j = 0; j < side; j++) {
        sum[j] += one * row[u * stride + j * dilation];
        more[j] += two * row[(u + 1) * stride + j * dilation];
      }
    }
    for (; u < out_width; u++)
      _Pragma("GCC unroll 7") for (int j = 0; j < side; j++) sum[j] += slope[u] * row[u * stride + j * dilation];
  }
  for (int j = 0; j < side; j++) add(sums + (i * side + j) * channels, sum[j] + more[j], w);
}

/* The gradient of the kernel, double [side][side][channels], where g is that of the output. Sides are 3, 5 or 7. */
void depth_kernel(int64_t images, int height, int width, int out_height, int out_width, int channels, int side,
                  int dilation, int stride, int threads, const T *x, const T *g, double *dkernel) {
  size_t size = (size_t)side * side * channels;
  int pad = dilation * (side - 1) / 2, wide = width + 2 * pad, band = CHUNK / out_width + 1;
  double *sums = calloc(size * threads, sizeof(double));
  _Pragma("omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)")
  for (int thread = 0; thread < threads; thread++) {
    V *room = blocks((int64_t)height * wide), *slopes = blocks((int64_t)out_height * out_width);
    for (int64_t b = images * thread / threads; b < images * (thread + 1) / threads; b++) {
#define WORK(c, w)                                                                                              \
  unfold(x + b * height * width * channels + c, height, width, channels, room + pad, wide, w);                  \
  unfold(g + b * out_height * out_width * channels + c, out_height, out_width, channels, slopes, out_width, w); \
  for (int y = 0; y < out_height; y += band)                                                                    \
    for (int i = 0; i < side; i++) {                                                                            \
      int end = y + band < out_height ? y + band : out_height;                                                  \
      double *to = sums + size * thread + c;                                                                    \
      if (side == 3) LINE_OF(3, w)                                                                              \
      if (side == 5) LINE_OF(5, w)                                                                              \
      if (side == 7) LINE_OF(7, w)                                                                              \
    }
#define LINE_OF(side, w) \
  kernel_line(room, slopes, i, y, end, height, wide, out_width, side, dilation, stride, channels, w, to);
      BLOCKS(WORK)
#undef WORK
#undef LINE_OF
    }
    free(room);
    free(slopes);
  }
  for (size_t m = 0; m < size; m++) dkernel[m] = whole(sums, size, threads, m);
  free(sums);
}
