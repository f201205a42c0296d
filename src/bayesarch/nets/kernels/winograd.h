/* Dense 3 x 3 and 5 x 5 convolutions at stride 1 of images with their channels last, and their gradients, by Winograd's
   minimal filtering (winograd.py has the formulae). Part of rows.c.

   An m x m tile of the output is R' [sum over c of (G k_c G') * (B' d_c B)] R for the 6 x 6 pixels d that it sees,
   where * is element by element; m is 4 for kernels of 3 x 3 and 2 for those of 5 x 5. For each of the 36 places that is
   a product of matrices, [tiles][in] by [in][out]. G k G' comes from outside, [36][blocks][in][16], OUTS output channels
   a block and zeros behind the last. */

#define SIDE 6
#define SQUARE (SIDE * SIDE)
#define OUTS 16 /* output channels that are summed side by side, in one or two registers each */
#if BLOCK > 8
#define BESIDE 12 /* so many tiles or input channels */
#else
#define BESIDE 6
#endif
#define FEWER 4   /* where so many are not left */
#define PER (OUTS / BLOCK)
#define ROOM 1728 /* tiles times channels that are dealt with together: what is made of them stays in the nearer caches */
#define EACH(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)

/* B' d, for six values. */
INLINE void seen(const V *d, V *v) {
  V a = d[4] - 4 * d[2], b = d[3] - 4 * d[1], p = d[4] - d[2], q = 2 * (d[3] - d[1]);
  v[0] = 4 * d[0] - 5 * d[2] + d[4];
  v[1] = a + b;
  v[2] = a - b;
  v[3] = p + q;
  v[4] = p - q;
  v[5] = 4 * d[1] - 5 * d[3] + d[5];
}

/* R' v: m values of six. */
INLINE void brought(const V *v, V *y, const int m) {
  V a = v[1] + v[2], b = v[1] - v[2], p = v[3] + v[4], q = v[3] - v[4];
  y[0] = v[0] + a + p;
  if (m == 2) {
    y[1] = b + 2 * q + v[5];
  } else {
    y[1] = b + 2 * q;
    y[2] = a + 4 * p;
    y[3] = b + 8 * q + v[5];
  }
}

/* R g: six values of m. */
INLINE void spread(const V *g, V *z, const int m) {
  V even = g[0], odd = g[1], far = g[0], wide = 2 * g[1];
  if (m == 4) {
    even += g[2];
    odd += g[3];
    far += 4 * g[2];
    wide += 8 * g[3];
  }
  z[0] = g[0];
  z[1] = even + odd;
  z[2] = even - odd;
  z[3] = far + wide;
  z[4] = far - wide;
  z[5] = g[m - 1];
}

INLINE void at_points(const V *d, V *o, const int n) {
  if (n == SIDE) seen(d, o);
  else spread(d, o, n);
}

typedef struct {
  int height, width, dilation, m, tall, wide; /* tiles along each axis of what one pixel sees at the dilation */
  int64_t tiles;
} Grid;

typedef struct {
  int64_t image;
  int y, x; /* of its first output */
} Tile;

static Grid grid_of(int64_t images, int height, int width, int dilation, int m) {
  int tall = ((height + dilation - 1) / dilation + m - 1) / m, wide = ((width + dilation - 1) / dilation + m - 1) / m;
  return (Grid){height, width, dilation, m, tall, wide, images * tall * wide * dilation * dilation};
}

/* The tiles from number k up to `end`, and how many they are, `room` at most. */
static int tiles_from(const Grid *g, int64_t k, int64_t end, int room, Tile *to) {
  int count = end - k < room ? end - k : room;
  int d = g->dilation, far = g->m * d;
  int x = k % g->wide, y = (k /= g->wide) % g->tall, right = (k /= g->tall) % d, down = (k /= d) % d;
  int64_t image = k / d;
  for (int t = 0; t < count; t++) {
    to[t] = (Tile){image, y * far + down, x * far + right};
    if (++x < g->wide) continue;
    x = 0;
    if (++y < g->tall) continue;
    y = 0;
    if (++right < d) continue;
    right = 0;
    if (++down < d) continue;
    down = 0;
    image++;
  }
  return count;
}

/* Where pixels (y + i d, x + j d) begin, i and j below n; `outside`, zeros, where that is not inside the image. */
INLINE void pixels(const Grid *g, const A *image, int y, int x, int n, int channels, const A *outside,
                   const A *from[SIDE][SIDE]) {
  for (int i = 0; i < n; i++, y += g->dilation) {
    const A *line = y >= 0 && y < g->height ? image + (int64_t)y * g->width * channels : 0;
    for (int j = 0, u = x; j < n; j++, u += g->dilation)
      from[i][j] = line && u >= 0 && u < g->width ? line + (int64_t)u * channels : outside;
  }
}

/* Put what n x n pixels of tiles become at the points into to[36][room][wide]: B' d B of the pixels d that a tile sees
   (n = 6), whose first lies `reach` before its first output, or R g R' of the gradient g of its outputs. */
INLINE void take(const Grid *g, const Tile *tiles, int count, int reach, int room, int channels, int wide,
                 const A *outside, const A *x, A *to, const int n) {
  int64_t far = (int64_t)room * wide;
  for (int t = 0; t < count; t++, to += wide) {
    const A *from[SIDE][SIDE], *image = x + tiles[t].image * g->height * g->width * channels;
    pixels(g, image, tiles[t].y - reach, tiles[t].x - reach, n, channels, outside, from);
#define WORK(c, w)                                             \
  V mid[SIDE][SIDE], d[SIDE], o[SIDE];                         \
  EACH(j, n) {                                                 \
    EACH(i, n) d[i] = get(from[i][j] + c, w);                  \
    at_points(d, o, n);                                        \
    EACH(i, SIDE) mid[i][j] = o[i];                            \
  }                                                            \
  EACH(i, SIDE) {                                              \
    at_points(mid[i], o, n);                                   \
    EACH(j, SIDE) put(to + (i * SIDE + j) * far + c, o[j], w); \
  }
    BLOCKS(WORK)
#undef WORK
  }
}

/* The m x m outputs of tiles: R' v R for v[36][room][wide]. */
INLINE void give(const Grid *g, const Tile *tiles, int count, int room, int channels, int wide, const A *v, A *out,
                 const int m) {
  int64_t far = (int64_t)room * wide;
  for (int t = 0; t < count; t++) {
    A *image = out + tiles[t].image * g->height * g->width * channels;
    const A *from = v + (int64_t)t * wide;
#define WORK(c, w)                                                                          \
  V mid[4][SIDE], d[SIDE], o[4];                                                            \
  EACH(j, SIDE) {                                                                           \
    EACH(i, SIDE) d[i] = get(from + (i * SIDE + j) * far + c, BLOCK);                       \
    brought(d, o, m);                                                                       \
    EACH(i, m) mid[i][j] = o[i];                                                            \
  }                                                                                         \
  EACH(i, m) {                                                                              \
    brought(mid[i], o, m);                                                                  \
    int y = tiles[t].y + i * g->dilation, u = tiles[t].x;                                   \
    if (y < g->height)                                                                      \
      EACH(j, m) if (u + j * g->dilation < g->width)                                        \
        put(image + ((int64_t)y * g->width + u + j * g->dilation) * channels + c, o[j], w); \
  }
    BLOCKS(WORK)
#undef WORK
  }
}

/* to[t][block] = sum over c of v[t][c] u[c][block], for n tiles. */
INLINE void product(const A *v, const A *u, A *to, int in, int wide, const int n) {
  V sum[BESIDE][PER];
  EACH(t, n) EACH(l, PER) sum[t][l] = (V){0};
  for (int c = 0; c < in; c++, u += OUTS) {
    V by[PER];
    EACH(l, PER) by[l] = get(u + l * BLOCK, BLOCK);
    EACH(t, n) {
      A of = v[(int64_t)t * in + c];
      EACH(l, PER) sum[t][l] += of * by[l];
    }
  }
  EACH(t, n) EACH(l, PER) put(to + (int64_t)t * wide + l * BLOCK, sum[t][l], BLOCK);
}

/* to[c][block] += sum over tiles t of v[t][c] z[t][block], for n channels. These tiles are summed by themselves: one
   after another onto the sum of all before them, each would lose what the large sum has no digits for. */
INLINE void outer(const A *v, const A *z, A *to, int count, int in, int wide, const int n) {
  V sum[BESIDE][PER];
  EACH(c, n) EACH(l, PER) sum[c][l] = (V){0};
  for (int t = 0; t < count; t++) {
    V by[PER];
    EACH(l, PER) by[l] = get(z + (int64_t)t * wide + l * BLOCK, BLOCK);
    EACH(c, n) {
      A of = v[(int64_t)t * in + c];
      EACH(l, PER) sum[c][l] += of * by[l];
    }
  }
  EACH(c, n) EACH(l, PER) {
    A *at = to + c * OUTS + l * BLOCK;
    put(at, get(at, BLOCK) + sum[c][l], BLOCK);
  }
}

/* How many tiles are dealt with together. */
static int room_of(int in, int wide) {
  int most = in > wide ? in : wide, found = ROOM / most / BESIDE * BESIDE;
  return found < 4 * BESIDE ? 4 * BESIDE : found;
}

static A *values(size_t count) { /* beginning where a register may be loaded from */
  return aligned_alloc(64, (count * sizeof(A) + 63) / 64 * 64);
}

/* y = the convolution of x, `in` channels, with the kernels of `side` that u is made of; it has the size of x. */
void winograd(int64_t images, int height, int width, int in, int out, int side, int dilation, int threads, const A *x,
              const A *u, A *y) {
  Grid g = grid_of(images, height, width, dilation, side == 3 ? 4 : 2);
  int wide = (out + OUTS - 1) / OUTS * OUTS, room = room_of(in, wide);
  _Pragma("omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)")
  for (int thread = 0; thread < threads; thread++) {
    A *v = values((size_t)SQUARE * room * in), *m = values((size_t)SQUARE * room * wide);
    A *outside = calloc(in, sizeof(A));
    Tile *tiles = malloc(room * sizeof(Tile));
    int64_t end = g.tiles * (thread + 1) / threads;
    for (int64_t first = g.tiles * thread / threads; first < end; first += room) {
      int count = tiles_from(&g, first, end, room, tiles);
      take(&g, tiles, count, dilation * (side / 2), room, in, in, outside, x, v, SIDE);
      for (int p = 0; p < SQUARE; p++)
        for (int o = 0; o < wide; o += OUTS) {
          const A *of = v + (int64_t)p * room * in, *by = u + ((int64_t)p * wide + o) * in;
          A *to = m + (int64_t)p * room * wide + o;
          int t = 0;
          for (; t + BESIDE <= count; t += BESIDE)
            product(of + (int64_t)t * in, by, to + (int64_t)t * wide, in, wide, BESIDE);
          for (; t < count; t++) product(of + (int64_t)t * in, by, to + (int64_t)t * wide, in, wide, 1);
        }
      if (side == 3) give(&g, tiles, count, room, out, wide, m, y, 4);
      else give(&g, tiles, count, room, out, wide, m, y, 2);
    }
    free(v);
    free(m);
    free(outside);
    free(tiles);
  }
}

/* du[threads][36][blocks][in][16], zeros before: what each thread adds to the gradient of u, `slope` that of y. */
void winograd_kernel(int64_t images, int height, int width, int in, int out, int side, int dilation, int threads,
                     const A *x, const A *slope, A *du) {
  Grid g = grid_of(images, height, width, dilation, side == 3 ? 4 : 2);
  int wide = (out + OUTS - 1) / OUTS * OUTS, room = room_of(in, wide);
  _Pragma("omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)")
  for (int thread = 0; thread < threads; thread++) {
    A *v = values((size_t)SQUARE * room * in), *z = values((size_t)SQUARE * room * wide);
    A *outside = calloc(in > out ? in : out, sizeof(A)), *mine = du + (int64_t)thread * SQUARE * in * wide;
    Tile *tiles = malloc(room * sizeof(Tile));
    memset(z, 0, (size_t)SQUARE * room * wide * sizeof(A));
    int64_t end = g.tiles * (thread + 1) / threads;
    for (int64_t first = g.tiles * thread / threads; first < end; first += room) {
      int count = tiles_from(&g, first, end, room, tiles);
      take(&g, tiles, count, dilation * (side / 2), room, in, in, outside, x, v, SIDE);
      if (side == 3) take(&g, tiles, count, 0, room, out, wide, outside, slope, z, 4);
      else take(&g, tiles, count, 0, room, out, wide, outside, slope, z, 2);
      for (int p = 0; p < SQUARE; p++)
        for (int o = 0; o < wide; o += OUTS) {
          const A *of = v + (int64_t)p * room * in, *by = z + (int64_t)p * room * wide + o;
          A *to = mine + ((int64_t)p * wide + o) * in;
          int c = 0;
          for (; c + BESIDE <= in; c += BESIDE) outer(of + c, by, to + (int64_t)c * OUTS, count, in, wide, BESIDE);
          for (; c + FEWER <= in; c += FEWER) outer(of + c, by, to + (int64_t)c * OUTS, count, in, wide, FEWER);
          for (; c < in; c++) outer(of + c, by, to + (int64_t)c * OUTS, count, in, wide, 1);
        }
    }
    free(v);
    free(z);
    free(outside);
    free(tiles);
  }
}
