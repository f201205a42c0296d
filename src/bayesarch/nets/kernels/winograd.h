/* Dense 3 x 3 and 5 x 5 convolutions at stride 1 of images with their channels last, and their gradients, by Winograd's
   minimal filtering (winograd.py has the formulae). Part of rows.c.

   An m x m tile of the output is R' [sum over c of (G k_c G') * (B' d_c B)] R for the 6 x 6 pixels d that it sees,
   where * is element by element; m is 4 for kernels of 3 x 3 and 2 for those of 5 x 5. For each of the 36 places that is
   a product of matrices, [tiles][in] by [in][out]. What lies beside one another in its second factor and in its result
   are blocks of COLUMNS channels, zeros behind the last. G is R, which has a column per pixel or tap of its other side, over
   the distances of its points. */

#define MOST 5  /* taps of a kernel along an axis */
#define AHEAD 8 /* kernels of which channels are brought to lie side by side before they are taken up again */
#if BLOCK > 8
#define BESIDE 12 /* so many tiles or channels of the gradient */
#else
#define BESIDE 6
#endif
#define FEWER 4   /* where so many are not left */
#define ROOM 1728 /* tiles times channels that are dealt with together: what is made of them stays in the nearer caches */

typedef struct {
  int height, width, dilation, m, tall, wide; /* tiles along each axis of what one pixel sees at the dilation */
  int64_t tiles, of, to;                      /* how far it is from pixel to pixel of the input, and of the output */
} Grid;

typedef struct {
  int64_t image;
  int y, x; /* of its first output */
} Tile;

static Grid grid_of(int64_t images, int height, int width, int dilation, int m, int64_t of, int64_t to) {
  int tall = ((height + dilation - 1) / dilation + m - 1) / m, wide = ((width + dilation - 1) / dilation + m - 1) / m;
  return (Grid){height, width, dilation, m, tall, wide, images * tall * wide * dilation * dilation, of, to};
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
INLINE void pixels(const Grid *g, const A *image, int y, int x, int n, int64_t step, const A *outside,
                   const A *from[SIDE][SIDE]) {
  for (int i = 0; i < n; i++, y += g->dilation) {
    const A *line = y >= 0 && y < g->height ? image + y * g->width * step : 0;
    for (int j = 0, u = x; j < n; j++, u += g->dilation)
      from[i][j] = line && u >= 0 && u < g->width ? line + u * step : outside;
  }
}

/* Put what n x n pixels of tiles, `step` apart, become at the points into to[36][room][wide]: B' d B of the pixels d that
   a tile sees (n = 6), whose first lies `reach` before its first output, or R g R' of the gradient g of its outputs. */
INLINE void take(const Grid *g, const Tile *tiles, int count, int reach, int room, int channels, int wide,
                 const A *outside, const A *x, int64_t step, A *to, const int n) {
  int64_t far = (int64_t)room * wide;
  for (int t = 0; t < count; t++, to += wide) {
    const A *from[SIDE][SIDE], *image = x + tiles[t].image * g->height * g->width * step;
    pixels(g, image, tiles[t].y - reach, tiles[t].x - reach, n, step, outside, from);
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

/* The two: functions of their own, whose values stay in registers; inside of larger ones many would not. */
static OWN void take_pixels(const Grid *g, const Tile *tiles, int count, int reach, int room, int channels, int wide,
                            const A *outside, const A *x, A *to) {
  take(g, tiles, count, reach, room, channels, wide, outside, x, g->of, to, SIDE);
}

static OWN void take_slopes(const Grid *g, const Tile *tiles, int count, int room, int channels, int wide,
                            const A *outside, const A *slope, A *to) {
  if (g->m == 4) take(g, tiles, count, 0, room, channels, wide, outside, slope, g->to, to, 4);
  else take(g, tiles, count, 0, room, channels, wide, outside, slope, g->to, to, 2);
}

/* The m x m outputs of tiles: R' v R for v[36][room][wide]. */
INLINE void give_of(const Grid *g, const Tile *tiles, int count, int room, int channels, int wide, const A *v, A *out,
                    const int m) {
  int64_t far = (int64_t)room * wide;
  for (int t = 0; t < count; t++) {
    A *image = out + tiles[t].image * g->height * g->width * g->to;
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
        put(image + ((int64_t)y * g->width + u + j * g->dilation) * g->to + c, o[j], w); \
  }
    BLOCKS(WORK)
#undef WORK
  }
}

static OWN void give(const Grid *g, const Tile *tiles, int count, int room, int channels, int wide, const A *v, A *out) {
  if (g->m == 4) give_of(g, tiles, count, room, channels, wide, v, out, 4);
  else give_of(g, tiles, count, room, channels, wide, v, out, 2);
}

/* to[t][block] = sum over c of v[t][c] u[c][block], for n tiles that are `apart` in v. */
INLINE void product(const A *v, int apart, const A *u, A *to, int in, int wide, const int n) {
  V sum[BESIDE][SIDEWAYS];
  EACH(t, n) EACH(l, SIDEWAYS) sum[t][l] = (V){0};
  for (int c = 0; c < in; c++, u += COLUMNS) {
    V by[SIDEWAYS];
    EACH(l, SIDEWAYS) {
      by[l] = get(u + l * BLOCK, BLOCK);
      HELD(by[l])
    }
    EACH(t, n) {
      A of = v[(int64_t)t * apart + c];
      EACH(l, SIDEWAYS) sum[t][l] += of * by[l];
    }
  }
  EACH(t, n) EACH(l, SIDEWAYS) put(to + (int64_t)t * wide + l * BLOCK, sum[t][l], BLOCK);
}

/* to[o][block] += sum over tiles t of z[t][o] v[t][block], for n channels of z. These tiles are summed by themselves:
   one after another onto the sum of all before them, each would lose what the large sum has no digits for. */
INLINE void outer(const A *z, const A *v, A *to, int count, int out, int wide, const int n) {
  V sum[BESIDE][SIDEWAYS];
  EACH(o, n) EACH(l, SIDEWAYS) sum[o][l] = (V){0};
  for (int t = 0; t < count; t++) {
    V by[SIDEWAYS];
    EACH(l, SIDEWAYS) {
      by[l] = get(v + (int64_t)t * wide + l * BLOCK, BLOCK);
      HELD(by[l])
    }
    EACH(o, n) {
      A of = z[(int64_t)t * out + o];
      EACH(l, SIDEWAYS) sum[o][l] += of * by[l];
    }
  }
  EACH(o, n) EACH(l, SIDEWAYS) {
    A *at = to + o * COLUMNS + l * BLOCK;
    put(at, get(at, BLOCK) + sum[o][l], BLOCK);
  }
}

/* How many tiles are dealt with together. */
static int room_of(int in, int out) {
  int most = columns_of(in > out ? in : out), found = ROOM / most / BESIDE * BESIDE;
  return found < 4 * BESIDE ? 4 * BESIDE : found;
}

/* What a thread works in, one behind the other: kernels at the points, tiles at the points by channels of the input and
   of the output, and a pixel of zeros. */
typedef struct {
  A *kernels, *in, *out, *outside;
} Desk;

static Desk desk_of(A *own, int in, int out) {
  int64_t room = room_of(in, out), a = columns_of(in), b = columns_of(out);
  A *first = own + SQUARE * a * b, *second = first + SQUARE * room * a;
  return (Desk){own, first, second, second + SQUARE * room * b};
}

/* Numbers that this takes. Who calls keeps them from one time to the next: new ones would be new pages. */
int64_t winograd_room(int in, int out) {
  int64_t room = room_of(in, out), a = columns_of(in), b = columns_of(out);
  return SQUARE * (a * b + room * (a + b)) + (a > b ? a : b);
}

/* u[36][blocks][n][COLUMNS] from block b on = G k G', the kernels k [n][side][side][COLUMNS]. */
INLINE void kernels_at_points(const A *k, int n, int64_t far, A *u, const int side) {
  for (int c = 0; c < n; c++, k += side * side * COLUMNS, u += COLUMNS)
    for (int l = 0; l < COLUMNS; l += BLOCK) {
      V mid[SIDE][MOST], d[SIDE], o[SIDE];
      EACH(j, side) {
        EACH(i, side) d[i] = get(k + (i * side + j) * COLUMNS + l, BLOCK);
        spread(d, o, side);
        EACH(i, SIDE) mid[i][j] = APART[i] * o[i];
      }
      EACH(i, SIDE) {
        spread(mid[i], o, side);
        EACH(j, SIDE) put(u + (i * SIDE + j) * far + l, APART[j] * o[j], BLOCK);
      }
    }
}

/* Kernels w[outs][side][side][ins] at the points, with channels `b` to `b` + `some` of the convolution's outputs beside
   one another: those of w, or, for the gradient, its inputs, kernels turned round. */
static void side_by_side(int outs, int ins, int side, int turned, int b, int some, const A *w, int64_t far, A *u) {
  int taps = side * side, n = turned ? outs : ins;
  A k[AHEAD * MOST * MOST * COLUMNS] = {0};
  for (int c = 0; c < n; c += AHEAD) {
    int count = n - c < AHEAD ? n - c : AHEAD;
    if (turned) {
      for (int i = 0; i < count; i++)
        for (int tap = 0; tap < taps; tap++)
          memcpy(k + (i * taps + taps - 1 - tap) * COLUMNS, w + ((int64_t)(c + i) * taps + tap) * ins + b,
                 some * sizeof(A));
    } else {
      for (int j = 0; j < some; j++)
        for (int tap = 0; tap < taps; tap++)
          for (int i = 0; i < count; i++)
            k[(i * taps + tap) * COLUMNS + j] = w[((int64_t)(b + j) * taps + tap) * ins + c + i];
    }
    if (side == 3) kernels_at_points(k, count, far, u + (int64_t)c * COLUMNS, 3);
    else kernels_at_points(k, count, far, u + (int64_t)c * COLUMNS, 5);
  }
}

/* dw[side][side][channels] = G' z G, for z[36][..][COLUMNS] summed over what `parts` threads have, `part` apart; blocks of
   channels are `block` apart, places `far`. */
INLINE void kernel_of_points(const A *z, int parts, int64_t part, int64_t block, int64_t far, int channels, A *dw,
                             const int side) {
#define WORK(c, w)                                                                                 \
  V mid[MOST][SIDE], d[SIDE], o[SIDE];                                                             \
  const A *from = z + c / COLUMNS * block + c % COLUMNS;                                                 \
  EACH(j, SIDE) {                                                                                  \
    EACH(i, SIDE) {                                                                                \
      d[i] = get(from + (i * SIDE + j) * far, w);                                                  \
      for (int p = 1; p < parts; p++) d[i] += get(from + p * part + (i * SIDE + j) * far, w);      \
      d[i] *= APART[i];                                                                            \
    }                                                                                              \
    brought(d, o, side);                                                                           \
    EACH(i, side) mid[i][j] = APART[j] * o[i];                                                     \
  }                                                                                                \
  EACH(i, side) {                                                                                  \
    brought(mid[i], o, side);                                                                      \
    EACH(j, side) put(dw + (int64_t)(i * side + j) * channels + c, o[j], w);                       \
  }
  BLOCKS(WORK)
#undef WORK
}

/* Kernels at the points, those of each block of the outputs behind one another. */
static void kernels_beside(int in, int out, int side, int turned, int threads, const A *w, A *u) {
  int64_t far = (int64_t)in * columns_of(out);
  _Pragma("omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)")
  for (int b = 0; b < out; b += COLUMNS)
    side_by_side(turned ? in : out, turned ? out : in, side, turned, b, out - b < COLUMNS ? out - b : COLUMNS, w, far,
                 u + (int64_t)b * in);
}

/* Products of `count` rows of v[in], `apart`, and u[wide / COLUMNS][in][COLUMNS]: rows of to[wide], `far` from one another. */
static void products(const A *v, int apart, const A *u, A *to, int far, int in, int wide, int count) {
  for (int o = 0; o < wide; o += COLUMNS, u += (int64_t)in * COLUMNS) {
    int t = 0;
    for (; t + BESIDE <= count; t += BESIDE)
      product(v + (int64_t)t * apart, apart, u, to + (int64_t)t * far + o, in, far, BESIDE);
    for (; t < count; t++) product(v + (int64_t)t * apart, apart, u, to + (int64_t)t * far + o, in, far, 1);
  }
}

/* to[wide / COLUMNS][out][COLUMNS] += sum over `count` of z[out], `apart`, by v[wide], `beside`. */
static void outers(const A *z, int apart, const A *v, int beside, A *to, int out, int wide, int count) {
  for (int b = 0; b < wide; b += COLUMNS, to += (int64_t)out * COLUMNS) {
    int o = 0;
    for (; o + BESIDE <= out; o += BESIDE) outer(z + o, v + b, to + (int64_t)o * COLUMNS, count, apart, beside, BESIDE);
    for (; o + FEWER <= out; o += FEWER) outer(z + o, v + b, to + (int64_t)o * COLUMNS, count, apart, beside, FEWER);
    for (; o < out; o++) outer(z + o, v + b, to + (int64_t)o * COLUMNS, count, apart, beside, 1);
  }
}

/* The outputs y of tiles from number `first` up to `end`, of x by kernels at the points u. */
static void outputs_of(const Grid *g, Desk desk, int64_t first, int64_t end, int in, int out, int side, const A *x,
                       const A *u, A *y) {
  int wide = columns_of(out), room = room_of(in, out);
  Tile tiles[ROOM / COLUMNS];
  for (; first < end; first += room) {
    int count = tiles_from(g, first, end, room, tiles);
    take_pixels(g, tiles, count, g->dilation * (side / 2), room, in, in, desk.outside, x, desk.in);
    for (int p = 0; p < SQUARE; p++)
      products(desk.in + (int64_t)p * room * in, in, u + (int64_t)p * wide * in, desk.out + (int64_t)p * room * wide,
               wide, in, wide, count);
    give(g, tiles, count, room, out, wide, desk.out, y);
  }
}

/* Add to the desk's kernels at the points what these tiles bring, of x and the gradient of the outputs. */
static void kernels_summed(const Grid *g, Desk desk, int64_t first, int64_t end, int in, int out, int side, const A *x,
                       const A *slope) {
  int wide = columns_of(in), room = room_of(in, out);
  Tile tiles[ROOM / COLUMNS];
  for (; first < end; first += room) {
    int count = tiles_from(g, first, end, room, tiles);
    take_pixels(g, tiles, count, g->dilation * (side / 2), room, in, wide, desk.outside, x, desk.in);
    take_slopes(g, tiles, count, room, out, out, desk.outside, slope, desk.out);
    for (int p = 0; p < SQUARE; p++)
      outers(desk.out + (int64_t)p * room * out, out, desk.in + (int64_t)p * room * wide, wide,
             desk.kernels + (int64_t)p * wide * out, out, wide, count);
  }
}

/* dw[out][side][side][in] from what so many threads have in kernels at the points, `part` apart. */
static void kernels_brought(const A *kernels, int64_t part, int in, int out, int side, int threads, A *dw) {
  int64_t far = (int64_t)out * columns_of(in), block = (int64_t)out * COLUMNS;
  _Pragma("omp parallel for num_threads(threads) schedule(static) if (threads > 1)")
  for (int o = 0; o < out; o++) {
    const A *of = kernels + (int64_t)o * COLUMNS;
    A *to = dw + (int64_t)o * side * side * in;
    if (side == 3) kernel_of_points(of, threads, part, block, far, in, to, 3);
    else kernel_of_points(of, threads, part, block, far, in, to, 5);
  }
}

static void convolved(const Grid *given, int in, int out, int side, int turned, int threads, const A *x, const A *w,
                      A *own, A *y) {
  Grid g = *given;
  A *u = own;
  kernels_beside(in, out, side, turned, threads, w, u);
  _Pragma("omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)")
  for (int thread = 0; thread < threads; thread++) {
    Desk desk = desk_of(own + thread * winograd_room(in, out), in, out);
    memset(desk.outside, 0, in * sizeof(A));
    outputs_of(&g, desk, g.tiles * thread / threads, g.tiles * (thread + 1) / threads, in, out, side, x, u, y);
  }
}

static void kernels_of_slopes(const Grid *given, int in, int out, int side, int threads, const A *x, const A *slope,
                              A *own, A *dw) {
  Grid g = *given;
  int64_t part = winograd_room(in, out);
  _Pragma("omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)")
  for (int thread = 0; thread < threads; thread++) {
    Desk desk = desk_of(own + thread * part, in, out);
    memset(desk.kernels, 0, SQUARE * (int64_t)out * columns_of(in) * sizeof(A));
    memset(desk.outside, 0, (in > out ? in : out) * sizeof(A));
    kernels_summed(&g, desk, g.tiles * thread / threads, g.tiles * (thread + 1) / threads, in, out, side, x, slope);
  }
  kernels_brought(own, part, in, out, side, threads, dw);
}

/* Do WORK for each group g, by `inside` threads in the room `mine`: one, where there are groups for all threads. Where
   not, nothing is parallel around it: threads of a region in a region are made anew each time. */
#define GROUPS(WORK)                                                                                \
  if (groups < threads || threads == 1) {                                                           \
    const int inside = threads;                                                                     \
    A *mine = own;                                                                                  \
    for (int g = 0; g < groups; g++) WORK                                                           \
  } else {                                                                                          \
    const int inside = 1;                                                                           \
    _Pragma("omp parallel for num_threads(threads) schedule(static, 1)")                            \
    for (int thread = 0; thread < threads; thread++) {                                              \
      A *mine = own + thread * winograd_room(in, out);                                              \
      for (int g = thread; g < groups; g += threads) WORK                                           \
    }                                                                                               \
  }

/* y = the convolution of x, `in` channels a group, with kernels w[groups][out][side][side][in]; it has the size of x.
   `turned`: with w[groups][in][side][side][out] turned round, which is the gradient of a convolution with w. `own` are
   winograd_room(in, out) numbers for each thread. */
void winograd(int64_t images, int height, int width, int groups, int in, int out, int side, int dilation, int turned,
              int threads, const A *x, const A *w, A *own, A *y) {
  Grid grid = grid_of(images, height, width, dilation, side == 3 ? 4 : 2, groups * in, groups * out);
  int64_t each = (int64_t)in * out * side * side;
  GROUPS(convolved(&grid, in, out, side, turned, inside, x + (int64_t)g * in, w + g * each, mine, y + (int64_t)g * out);)
}

/* dw[groups][out][side][side][in] = the gradient of kernels where `slope` is that of the outputs; `own` as above. */
void winograd_kernel(int64_t images, int height, int width, int groups, int in, int out, int side, int dilation,
                     int threads, const A *x, const A *slope, A *own, A *dw) {
  Grid grid = grid_of(images, height, width, dilation, side == 3 ? 4 : 2, groups * in, groups * out);
  int64_t each = (int64_t)in * out * side * side;
  GROUPS(kernels_of_slopes(&grid, in, out, side, inside, x + (int64_t)g * in, slope + (int64_t)g * out, mine, dw + g * each);)
}
