/* Passes over images with their channels last: means and maxima over windows. Part of rows.c. */

/* One line of the means below: out = `over` the sum of three columns, each `wide` the sum of its n pixels times `tall`; of
   both numbers the first is that of the first column, the last of the last, and the other of those between. */
INLINE void line_of(const T **near, const A *tall, const int n, const A *wide, const A *over, int width, int channels,
                    int c, T *out, const int w) {
#define COLUMN(to, u)                                                                         \
  V to = {0};                                                                                 \
  EACH(m, n) to += tall[m] * get(near[m] + (int64_t)(u) * channels + c, w);                   \
  to *= wide[(u) == 0 ? 0 : (u) < width - 1 ? 1 : 2];
  V left = {0};
  COLUMN(here, 0)
  for (int u = 0; u < width; u++) {
    V right = {0};
    if (u < width - 1) {
      COLUMN(next, u + 1)
      right = next;
    }
    put(out + (int64_t)u * channels + c, over[u == 0 ? 0 : u < width - 1 ? 1 : 2] * (left + here + right), w);
    left = here;
    here = right;
  }
#undef COLUMN
}

/* Means over 3 x 3 windows that reach past the edges of images (height x width pixels, channels last, dense), of what
   is inside; or, `back`, the gradient of that: each pixel is divided by the size of its window before it is summed. */
void box(int64_t images, int height, int width, int channels, int back, int threads, const T *x, T *out) {
  int64_t line = (int64_t)width * channels;
  A edge = (A)1 / (1 + (width > 1)), middle = (A)1 / 3, one[3] = {1, 1, 1}, across[3] = {edge, middle, edge};
  _Pragma("omp parallel for num_threads(threads) schedule(static) if (threads > 1)")
  for (int64_t i = 0; i < images; i++)
    for (int y = 0; y < height; y++) {
      const T *near[3];
      A tall[3], over[3];
      int n = 0;
      for (int v = y > 0 ? y - 1 : 0; v <= y + 1 && v < height; v++) {
        near[n] = x + (i * height + v) * line;
        tall[n++] = back ? (A)1 / ((v > 0) + 1 + (v < height - 1)) : 1;
      }
      for (int k = 0; k < 3; k++) over[k] = back ? 1 : across[k] / n;
      T *to = out + (i * height + y) * line;
#define LINE(n, c, w) line_of(near, tall, n, back ? across : one, over, width, channels, c, to, w);
#define WORK3(c, w) LINE(3, c, w)
#define WORK2(c, w) LINE(2, c, w)
#define WORK1(c, w) LINE(1, c, w)
      if (n == 3) BLOCKS(WORK3)
      else if (n == 2) BLOCKS(WORK2)
      else BLOCKS(WORK1)
#undef WORK1
#undef WORK2
#undef WORK3
#undef LINE
    }
}

/* The first largest value of the 3 x 3 window around a pixel, of what is inside the image, and its place there; what is
   no number is larger than any. */
INLINE V largest(const T *image, int y, int x, int height, int width, int channels, const int w, PLACES *place) {
  V best = {0};
  PLACES at = {0}, take = ~at; /* the first value, whatever it is */
  for (int v = y > 0 ? y - 1 : 0; v <= y + 1 && v < height; v++)
    for (int u = x > 0 ? x - 1 : 0; u <= x + 1 && u < width; u++) {
      V value = get(image + ((int64_t)v * width + u) * channels, w);
      take |= (PLACES)(value > best) | (PLACES)(value != value);
      best = (V)((take & (PLACES)value) | (~take & (PLACES)best));
      at = (take & (3 * (v - y) + (u - x))) | (~take & at);
      take = (PLACES){0};
    }
  *place = at;
  return best;
}

/* Maxima over 3 x 3 windows around every stride-th pixel of images (height x width pixels, dense). */
void top(int64_t images, int height, int width, int channels, int stride, int threads, const T *x, T *out) {
  int tall = (height - 1) / stride + 1, wide = (width - 1) / stride + 1;
  _Pragma("omp parallel for num_threads(threads) schedule(static) if (threads > 1)")
  for (int64_t b = 0; b < images; b++) {
#define WORK(c, w)                                                                          \
  for (int y = 0; y < tall; y++)                                                            \
    for (int u = 0; u < wide; u++) {                                                        \
      PLACES place;                                                                         \
      const T *image = x + b * height * width * channels + c;                               \
      V found = largest(image, y * stride, u * stride, height, width, channels, w, &place); \
      put(out + ((b * tall + y) * wide + u) * channels + c, found, w);                      \
    }
    BLOCKS(WORK)
#undef WORK
  }
}

/* The gradient of that: g goes to where the largest value is, which is looked for again. */
void top_back(int64_t images, int height, int width, int channels, int stride, int threads, const T *x, const T *g,
              T *dx) {
  int tall = (height - 1) / stride + 1, wide = (width - 1) / stride + 1;
  _Pragma("omp parallel for num_threads(threads) schedule(static) if (threads > 1)")
  for (int64_t b = 0; b < images; b++) {
    V *room = blocks((int64_t)height * width);
#define WORK(c, w)                                                                              \
  for (int64_t m = 0; m < height * width; m++) room[m] = (V){0};                                \
  for (int y = 0; y < tall * stride; y += stride)                                               \
    for (int u = 0; u < wide * stride; u += stride) {                                           \
      PLACES place;                                                                             \
      largest(x + b * height * width * channels + c, y, u, height, width, channels, w, &place); \
      V slope = get(g + ((b * tall + y / stride) * wide + u / stride) * channels + c, w);       \
      for (int i = -(y > 0); i <= (y < height - 1); i++)                                        \
        for (int j = -(u > 0); j <= (u < width - 1); j++)                                       \
          room[(y + i) * width + u + j] += (V)((PLACES)(place == 3 * i + j) & (PLACES)slope);   \
    }                                                                                           \
  for (int64_t m = 0; m < height * width; m++) put(dx + (b * height * width + m) * channels + c, room[m], w);
    BLOCKS(WORK)
#undef WORK
    free(room);
  }
}
