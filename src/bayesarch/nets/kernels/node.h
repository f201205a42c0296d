/* All that leaves a node of a cell: dense 3 x 3 and 1 x 1 convolutions of the positive part of its features, a norm behind
   each, means over windows of the features, and the features themselves; each goes through a gate to a sum at another
   node. Outputs and gradients are computed for some images at a time, so that what is made on the way stays in the nearer
   caches. Part of rows.c. */

/* Convolutions of one size, to as many channels as there are. */
typedef struct {
  int count;
  const A *kernels; /* [count channels][side][side][channels] */
  double eps, momentum;
  A *running_mean, *running_var;
  A *dkernels; /* their gradient; null: it is not wanted */
} Bunch;

#define ITSELF (-1)
#define POOLED (-2)

/* What goes to a sum: what convolution number `of` gives, or one of those above. */
typedef struct {
  int of;
  const T *g; /* the gradient of the sum */
  int64_t step;
  const A *gate;
  A *of_gate; /* its gradient; null: it is not wanted */
} Use;

typedef struct {
  int64_t images;
  int height, width, pixels, channels;
  int dense, point;  /* channels that 3 x 3 and 1 x 1 convolutions give */
  int all;           /* both side by side, and room for the whole blocks that products of matrices give */
  int some, threads; /* images at a time: enough for those products to fill their registers */
} Node;

static Node node_of(int64_t images, int height, int width, int channels, int dense, int point, int threads) {
  int tiles = ((height + 3) / 4) * ((width + 3) / 4), some = (4 * BESIDE + tiles - 1) / tiles;
  dense *= channels;
  point *= channels;
  return (Node){images, height, width, height * width, channels, dense, point, dense + columns_of(point), some, threads};
}

/* What a thread works in, rows of pixels each: the positive part of features, what all convolutions give or its gradients
   side by side, gradients of the positive part through 3 x 3 and through 1 x 1 convolutions, of features as they are, of
   means over windows, and through these. And sums for the gradients of 1 x 1 kernels, and a desk for the others. */
typedef struct {
  A *rise, *given, *back, *back_of_points, *itself, *pooled, *box, *points;
  Desk desk;
} Bay;

/* Lay out a bay in `own`, null: in nothing. Returns how many numbers it takes. */
static int64_t lay_bay(const Node *n, A *own, Bay *bay) {
  int64_t at = 0, rows = (int64_t)n->some * n->pixels, wide = columns_of(n->channels);
#define LAID(name, count) \
  if (own) bay->name = own + at; \
  at += (count);
  LAID(rise, rows * n->channels) /* what is read beyond the last row, to fill a block, goes nowhere */
  LAID(given, rows * n->all)
  LAID(back, rows * n->channels)
  LAID(back_of_points, rows * wide)
  LAID(itself, rows * n->channels)
  LAID(pooled, rows * n->channels)
  LAID(box, rows * n->channels)
  LAID(points, wide * n->point)
#undef LAID
  if (own) bay->desk = desk_of(own + at, n->channels, n->dense);
  return at + winograd_room(n->channels, n->dense);
}

/* Numbers that all threads read: 3 x 3 kernels at the points, and 1 x 1 kernels behind them. */
static int64_t dense_room(const Node *n) { return SQUARE * (int64_t)columns_of(n->channels) * columns_of(n->dense); }
static int64_t shared_room(const Node *n) {
  return dense_room(n) + (int64_t)columns_of(n->channels) * columns_of(n->point);
}

/* Numbers that both functions below work in. */
int64_t node_room(int64_t images, int height, int width, int channels, int dense, int point, int threads) {
  Node n = node_of(images, height, width, channels, dense, point, threads);
  return shared_room(&n) + threads * lay_bay(&n, 0, 0);
}

static Bay bay_at(const Node *n, A *own, int thread) {
  Bay bay;
  lay_bay(n, own + shared_room(n) + thread * lay_bay(n, 0, 0), &bay);
  memset(bay.desk.outside, 0, (n->channels > n->dense ? n->channels : n->dense) * sizeof(A));
  return bay;
}

/* u[blocks][..][COLUMNS]: 1 x 1 kernels w[outs][ins] with outputs beside one another, zeros behind them; turned: inputs. */
static void points_beside(int outs, int ins, int turned, const A *w, A *u) {
  int n = turned ? outs : ins, across = turned ? ins : outs;
  for (int b = 0; b < across; b += COLUMNS)
    for (int c = 0; c < n; c++)
      for (int j = b; j < b + COLUMNS; j++) *u++ = j >= across ? 0 : w[turned ? (int64_t)c * ins + j : (int64_t)j * ins + c];
}

/* out = the positive part of rows of x. */
static void risen(const T *x, int64_t step, int64_t end, int channels, A *out) {
  int64_t start = 0;
#define ROW_OF(r, j, w)             \
  V z = get(x + (r) * step + c, w); \
  put(out + (r) * channels + c, where(z, z), w);
#define WORK(c, w) ROWS(ROW_OF, w)
  BLOCKS(WORK)
#undef WORK
#undef ROW_OF
}

/* Put rows of x, `far` apart, into y, and add them to sums as `told_of` takes them; `begins`: there is nothing in these. */
static void put_counted(const A *x, int64_t far, int64_t rows, int channels, int begins, T *y, double *sums) {
  for (int c = 0; c < channels && begins; c++) sums[c] = x[c];
#define ROW_OF(r, j, w)                     \
  V row = get(x + (r) * far + c, w);        \
  V away = row - from;                      \
  s[j] += away;                             \
  q[j] += away * away;                      \
  put(y + (r) * channels + c, row, w);
#define WORK(c, w)                                   \
  V from = {0}, s[4] = {{0}}, q[4] = {{0}};          \
  for (int j = 0; j < w; j++) from[j] = sums[c + j]; \
  ROWS(ROW_OF, w)                                    \
  add4(sums + channels + c, s, w);                   \
  add4(sums + (int64_t)2 * channels + c, q, w);
  for (int64_t start = 0; start < rows; start += CHUNK) {
    int64_t end = start + CHUNK < rows ? start + CHUNK : rows;
    BLOCKS(WORK)
  }
#undef WORK
#undef ROW_OF
}

/* y[convolutions][images][height][width][channels] = what they give, those of 3 x 3 first; its moments; and pooled = means
   over windows (null: they are not wanted). */
void node(int64_t images, int height, int width, int channels, const Bunch *dense, const Bunch *point, int threads,
          const T *h, int64_t step, A *own, T *y, double *mean, double *inv, T *pooled) {
  Node n = node_of(images, height, width, channels, dense->count, point->count, threads);
  A *u = own, *v = own + dense_room(&n);
  if (n.dense) kernels_beside(channels, n.dense, 3, 0, threads, dense->kernels, u);
  if (n.point) points_beside(n.point, channels, 0, point->kernels, v);
  int count = dense->count + point->count;
  size_t size = (size_t)3 * channels * threads;
  double *sums = calloc(size * count, sizeof(double));
  _Pragma("omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)")
  for (int thread = 0; thread < threads; thread++) {
    Bay bay = bay_at(&n, own, thread);
    int64_t begin = images * thread / threads, end = images * (thread + 1) / threads;
    for (int64_t b = begin; b < end; b += n.some) {
      int64_t some = end - b < n.some ? end - b : n.some, rows = some * n.pixels;
      const T *features = h + b * n.pixels * step;
      if (count) risen(features, step, rows, channels, bay.rise);
      for (int64_t r = 0; r < rows && pooled && step > channels; r++)
        memcpy(bay.itself + r * channels, features + r * step, channels * sizeof(T));
      if (pooled)
        box(some, height, width, channels, 0, 1, step > channels ? bay.itself : features, pooled + b * n.pixels * channels);
      if (n.dense) {
        Grid grid = grid_of(some, height, width, 1, 4, channels, n.all);
        outputs_of(&grid, bay.desk, 0, grid.tiles, channels, n.dense, 3, bay.rise, u, bay.given);
      }
      products(bay.rise, channels, v, bay.given + n.dense, n.all, channels, columns_of(n.point), rows);
      for (int k = 0; k < count; k++)
        put_counted(bay.given + k * channels, n.all, rows, channels, b == begin, y + (k * images + b) * n.pixels * channels,
                    sums + size * k + (size_t)3 * channels * thread);
    }
  }
  for (int k = 0; k < count; k++) {
    const Bunch *bunch = k < dense->count ? dense : point;
    int64_t at = (int64_t)(k < dense->count ? k : k - dense->count) * channels, place = (int64_t)k * channels;
    told_of(images, n.pixels, threads, sums + size * k, channels, channels, bunch->eps, bunch->momentum,
            bunch->running_mean + at, bunch->running_var + at, mean + place, inv + place);
  }
  free(sums);
}

/* For each use and channel what the gradient of what is gated is made of, own g + along y + all; and gradients of gates. */
static void ends_of(const Node *n, int uses, const Use *use, const T *y, const T *h, int64_t step, const T *pooled,
                    const double *mean, const double *inv, A *own, A *along, A *all) {
  int64_t rows = n->images * n->pixels;
  int channels = n->channels, threads = n->threads;
  size_t size = (size_t)2 * channels * uses;
  double *sums = calloc(size * threads, sizeof(double));
#define SOURCE(x, far)                                                                      \
  const T *x = p->of >= 0 ? y + p->of * rows * channels : p->of == ITSELF ? h : pooled;    \
  int64_t far = p->of == ITSELF ? step : channels;
#define ROW_OF(r, j, w)                       \
  V slope = get(p->g + (r) * p->step + c, w); \
  total[j] += slope;                          \
  product[j] += slope * (get(x + (r) * far + c, w) - from);
#define WORK(c, w)                                                   \
  V from = get(x + c, w), total[4] = {{0}}, product[4] = {{0}};      \
  ROWS(ROW_OF, w)                                                    \
  add4(sums + size * t + (size_t)2 * k * channels + c, total, w);    \
  add4(sums + size * t + (size_t)(2 * k + 1) * channels + c, product, w);
  CHUNKS(for (int k = 0; k < uses; k++) {
    const Use *p = use + k;
    SOURCE(x, far)
    if (p->of >= 0 || p->of_gate) BLOCKS(WORK)
  })
#undef ROW_OF
#undef WORK
  for (int k = 0; k < uses; k++) {
    const Use *p = use + k;
    SOURCE(x, far)
    (void)far;
    double of_gate = 0;
    for (int c = 0; c < channels; c++) {
      int place = k * channels + c, m = p->of * channels + c;
      double total = whole(sums, size, threads, (size_t)2 * k * channels + c);
      double product = whole(sums, size, threads, (size_t)(2 * k + 1) * channels + c);
      own[place] = *p->gate;
      if (p->of >= 0) {
        product = (product + (x[c] - mean[m]) * total) * inv[m];
        own[place] *= inv[m];
        normed(*p->gate * total, *p->gate * product, mean[m], inv[m], rows, all + place, along + place);
      } else if (p->of_gate) {
        product += x[c] * total;
      }
      of_gate += product;
    }
    if (p->of_gate) *p->of_gate += of_gate;
  }
#undef SOURCE
  free(sums);
}

/* Set the gradients of what convolutions give, for rows from number `row` on, and add to those of features as they are and
   of means over windows. */
static void slopes_of(const Node *n, int uses, const Use *use, int64_t row, int64_t rows, const T *y, const A *own,
                      const A *along, const A *all, const Bay *bay) {
  int channels = n->channels;
  int64_t each = n->images * n->pixels * channels;
#define NUMBERS(of_what, w) get(of_what + k * channels + c, w)
#define SUM_OF(r, j, w) put(to + (r) * channels + c, get(to + (r) * channels + c, w) + by * get(g + (r) * p->step + c, w), w);
#define SLOPE_OF(r, j, w) \
  put(slopes + (r) * n->all + c, by * get(g + (r) * p->step + c, w) + (on * get(x + (r) * channels + c, w) + over), w);
#define SUMS(c, w)           \
  V by = NUMBERS(own, w);    \
  ROWS(SUM_OF, w)
#define SLOPES(c, w)                                                               \
  V by = NUMBERS(own, w), on = NUMBERS(along, w), over = NUMBERS(all, w);          \
  ROWS(SLOPE_OF, w)
  for (int64_t start = 0; start < rows; start += CHUNK) /* of all uses: what they read stays near */
    for (int k = 0; k < uses; k++) {
      const Use *p = use + k;
      const T *g = p->g + row * p->step, *x = p->of < 0 ? 0 : y + p->of * each + row * channels;
      A *to = p->of == ITSELF ? bay->itself : bay->pooled, *slopes = bay->given + p->of * channels;
      int64_t end = start + CHUNK < rows ? start + CHUNK : rows;
      if (p->of < 0) BLOCKS(SUMS)
      else BLOCKS(SLOPES)
    }
#undef NUMBERS
#undef SUMS
#undef SLOPES
#undef SUM_OF
#undef SLOPE_OF
}

/* dw[n][channels] = sums of blocks [..][n][COLUMNS], over threads. */
static void points_brought(const Node *n, A *own, A *dw) {
  memset(dw, 0, (int64_t)n->point * n->channels * sizeof(A));
  for (int thread = 0; thread < n->threads; thread++) {
    Bay bay = bay_at(n, own, thread);
    for (int o = 0; o < n->point; o++)
      for (int c = 0; c < n->channels; c++)
        dw[(int64_t)o * n->channels + c] += bay.points[(c / COLUMNS * n->point + o) * COLUMNS + c % COLUMNS];
  }
}

/* Gradients of the above, and of what goes through windows and as it is: dx (null: it is not wanted), and what uses and
   bunches ask for. `pooled`, the means over windows, may be null where the gradient of none of their gates is wanted. */
void node_back(int64_t images, int height, int width, int channels, const Bunch *dense, const Bunch *point, int threads,
               const T *h, int64_t step, A *own, const T *y, const double *mean, const double *inv, int uses,
               const Use *use, const T *pooled, T *dx) {
  Node n = node_of(images, height, width, channels, dense->count, point->count, threads);
  A *u = own, *v = own + dense_room(&n), *by = malloc((size_t)3 * uses * channels * sizeof(A));
  A *along = by + uses * channels, *all = along + uses * channels;
  ends_of(&n, uses, use, y, h, step, pooled, mean, inv, by, along, all);
  if (n.dense && dx) kernels_beside(n.dense, channels, 3, 1, threads, dense->kernels, u);
  if (n.point && dx) points_beside(n.point, channels, 1, point->kernels, v);
  int64_t wide = columns_of(channels);
  int windows = 0;
  for (int k = 0; k < uses; k++) windows |= use[k].of == POOLED;
  _Pragma("omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)")
  for (int thread = 0; thread < threads; thread++) {
    Bay bay = bay_at(&n, own, thread);
    Desk turned = desk_of(bay.desk.kernels, n.dense, channels); /* the same room, for the other way */
    memset(bay.desk.kernels, 0, SQUARE * (int64_t)n.dense * wide * sizeof(A));
    memset(bay.points, 0, n.point * wide * sizeof(A));
    int64_t end = images * (thread + 1) / threads;
    for (int64_t b = images * thread / threads; b < end; b += n.some) {
      int64_t count = end - b < n.some ? end - b : n.some, rows = count * n.pixels;
      const T *features = h + b * n.pixels * step;
      memset(bay.itself, 0, rows * channels * sizeof(A));
      if (windows) memset(bay.pooled, 0, rows * channels * sizeof(A));
      slopes_of(&n, uses, use, b * n.pixels, rows, y, by, along, all, &bay);
      if (dense->dkernels || point->dkernels) risen(features, step, rows, channels, bay.rise);
      if (n.dense && dense->dkernels) {
        Grid grid = grid_of(count, height, width, 1, 4, channels, n.all);
        kernels_summed(&grid, bay.desk, 0, grid.tiles, channels, n.dense, 3, bay.rise, bay.given);
      }
      if (n.point && point->dkernels)
        outers(bay.given + n.dense, n.all, bay.rise, channels, bay.points, n.point, wide, rows);
      if (!dx) continue;
      if (n.dense) {
        Grid grid = grid_of(count, height, width, 1, 4, n.all, channels);
        outputs_of(&grid, turned, 0, grid.tiles, n.dense, channels, 3, bay.given, u, bay.back);
      }
      if (n.point) products(bay.given + n.dense, n.all, v, bay.back_of_points, wide, n.point, wide, rows);
      if (windows) box(count, height, width, channels, 1, 1, bay.pooled, bay.box);
      T *to = dx + b * n.pixels * channels;
#define WORK(c, w)                                                                      \
  for (int64_t r = 0; r < rows; r++) {                                                  \
    V back = {0}, sum = get(bay.itself + r * channels + c, w);                          \
    if (n.dense) back += get(bay.back + r * channels + c, w);                           \
    if (n.point) back += get(bay.back_of_points + r * wide + c, w);                     \
    if (windows) sum += get(bay.box + r * channels + c, w);                             \
    put(to + r * channels + c, sum + where(get(features + r * step + c, w), back), w);  \
  }
      BLOCKS(WORK)
#undef WORK
    }
  }
  if (n.dense && dense->dkernels)
    kernels_brought(bay_at(&n, own, 0).desk.kernels, lay_bay(&n, 0, 0), channels, n.dense, 3, threads, dense->dkernels);
  if (n.point && point->dkernels) points_brought(&n, own, point->dkernels);
  free(by);
}
