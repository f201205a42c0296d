/* Units of a depthwise and a 1 x 1 convolution, and all their gradients, by the parts in separable.h. Part of rows.c. */

/* An image's rows of an output, of what lies between; to sums, where moments are wanted: the first of all values that a
   thread makes, then those of values less that, and of their squares. */
static void put_out(const Plan *p, const Pair *pair, const Bench *d, T *y, int begins, double *sums) {
  int out = pair->unit->out, outs = columns_of(out);
  int pixels = p->out_height * p->out_width, room = p->band * p->out_width;
  for (int first = 0; first < pixels; first += room) {
    int count = pixels - first < room ? pixels - first : room;
    for (int o = 0; o < out; o += COLUMNS)
      points(d->between + first, pixels, p->in, pair->point + (int64_t)o * p->in, filled(out - o), count,
             d->out + (int64_t)o / BLOCK * room, room, 0);
    put_rows(d->out, room, out, count, y + (int64_t)first * out, 1);
    for (int o = 0; o < out && sums; o += BLOCK) {
      const V *mine = d->out + (int64_t)o / BLOCK * room;
      if (begins && !first) add(sums + o, mine[0], BLOCK);
      V from = {0}, s[2] = {{0}}, q[2] = {{0}};
      for (int j = 0; j < BLOCK; j++) from[j] = sums[o + j];
      for (int t = 0; t < count; t++) {
        V away = mine[t] - from;
        s[t % 2] += away;
        q[t % 2] += away * away;
      }
      add(sums + outs + o, s[0] + s[1], BLOCK);
      add(sums + 2 * outs + o, q[0] + q[1], BLOCK);
    }
  }
}

/* Outputs of n units of x, or, with moments, of the positive part of x normalised. `own` are separable_room(..) numbers. */
void separable(int n, const Unit *units, int64_t images, int height, int width, int in, int stride, int threads,
               const T *x, int64_t step, const double *mean, const double *inv, A *own) {
  Plan p = plan_of(n, units, images, height, width, in, stride, threads);
  Pair *pairs = malloc(n * sizeof(Pair));
  V *first = aligned(own);
  prepare(&p, units, pairs, (A *)first, mean, inv, 0);
  size_t size = (size_t)3 * p.widest * threads;
  double *sums = calloc(size * n, sizeof(double));
  _Pragma("omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)")
  for (int thread = 0; thread < threads; thread++) {
    Bench d = bench_at(&p, first, thread);
    int64_t begin = images * thread / threads;
    for (int64_t b = begin; b < images * (thread + 1) / threads; b++) {
      put_in(&p, &d, x + b * height * width * step, step);
      for (int k = 0; k < n; k++) {
        const Unit *u = units + k;
        for (int c = 0; c < in; c += BLOCK) convolve(&p, pairs + k, &d, c);
        put_out(&p, pairs + k, &d, u->y + b * p.out_height * p.out_width * u->out, b == begin,
                u->mean ? sums + size * k + (size_t)3 * columns_of(u->out) * thread : 0);
      }
    }
    PASSED;
  }
  for (int k = 0; k < n; k++)
    if (units[k].mean) {
      const Unit *u = units + k;
      told_of(images, p.out_height * p.out_width, threads, sums + size * k, columns_of(u->out), u->out, u->eps,
              u->momentum, u->running_mean, u->running_var, u->mean, u->inv);
    }
  free(sums);
  free(pairs);
}

/* For units whose outputs were kept and go to sums through gates: what their gradients are made of, and those of gates. */
static void ends(const Plan *p, Pair *pairs, int n) {
  int64_t rows = p->images * p->out_height * p->out_width;
  size_t size = (size_t)2 * p->widest, all = size * n;
  int threads = p->threads;
  double *sums = calloc(all * threads, sizeof(double));
#define ROW_OF(r, j, w)               \
  V slope = get(g + (r) * u->step, w); \
  total[j] += slope;                  \
  product[j] += slope * (get(y + (r) * channels, w) - from);
#define WORK(c, w)                                                   \
  const T *g = u->g + c, *y = u->y + c;                              \
  V from = get(y, w), total[4] = {{0}}, product[4] = {{0}};          \
  ROWS(ROW_OF, w)                                                    \
  add4(sums + all * t + size * k + c, total, w);                     \
  add4(sums + all * t + size * k + p->widest + c, product, w);
  CHUNKS(for (int k = 0; k < n; k++) {
    const Unit *u = pairs[k].unit;
    int channels = u->out;
    if (u->gate && u->y && (u->mean || u->of_gate)) BLOCKS(WORK)
  })
#undef ROW_OF
#undef WORK
  for (int k = 0; k < n; k++) {
    const Unit *u = pairs[k].unit;
    for (int c = 0; c < u->out && u->gate && u->y; c++) {
      double total = whole(sums, all, threads, size * k + c), product = whole(sums, all, threads, size * k + p->widest + c);
      double from = get(u->y + c, 1)[0], inv = u->mean ? u->inv[c] : 1, mean = u->mean ? u->mean[c] : 0;
      product = (product + (from - mean) * total) * inv;
      pairs[k].own[c] = *u->gate * inv;
      if (u->of_gate) *u->of_gate += product;
      if (!u->mean) continue;
      normed(*u->gate * total, *u->gate * product, mean, inv, rows, pairs[k].all + c, pairs[k].along + c);
    }
  }
  free(sums);
}

/* The gradient of what lies between, from those of an image's output, `more`: added to what is there; and sums for the
   1 x 1 kernels. */
static void down(const Plan *p, const Pair *pair, const Bench *d, int64_t image, int more) {
  const Unit *u = pair->unit;
  int64_t room = (int64_t)p->band * p->out_width, apart = (int64_t)p->out_height * p->span;
  for (int y = 0; y < p->out_height; y += p->band) {
    int lines = p->out_height - y < p->band ? p->out_height - y : p->band, count = lines * p->out_width;
    int64_t from = (int64_t)y * p->out_width, row = image * p->out_height * p->out_width + from;
    get_rows(u->g + row * u->step, u->step, u->out, count, d->out, room);
    for (int o = 0; o < u->out && pair->own && u->y; o += BLOCK) {
      V own = of(pair->own + o, BLOCK), all = of(pair->all + o, BLOCK), along = of(pair->along + o, BLOCK);
      V *to = d->out + o / BLOCK * room;
      if (!u->mean)
        for (int t = 0; t < count; t++) to[t] *= own;
      else
        for (int t = 0; t < count; t++)
          to[t] = own * to[t] + along * get_some(u->y + (row + t) * u->out + o, u->out - o) + all;
    }
    for (int i = 0; i < lines; i++)
      for (int c = 0; c < p->in; c += COLUMNS)
        points(d->out + i * p->out_width, room, u->out, pair->point + (int64_t)c * u->out, filled(p->in - c), p->out_width,
               d->slope + c / BLOCK * apart + (int64_t)(y + i) * p->span + p->left, apart, more);
    if (u->dpoint) outer_points(p, u->out, d->out, room, d->between + from, count, d->point + pair->place);
  }
}

/* Whether the gradient goes through a gate only behind the 1 x 1 convolution, where an output was not kept. */
static int is_late(const Unit *u) { return u->gate && !u->y; }

/* Take the gradient of what lies between through the gate. Returns what the gate gets of it, by what lies between (null: that
   is not wanted). */
static OWN double through_gate(const Plan *p, const Pair *pair, const Bench *d, const V *between) {
  A gate = *pair->unit->gate;
  double sum = 0;
  for (int64_t line = 0; line < (int64_t)p->columns / BLOCK * p->out_height; line++) {
    V *slope = d->slope + line * p->span + p->left, total = {0};
    for (int t = 0; t < p->out_width && between; t++) total += slope[t] * between[line * p->out_width + t];
    for (int t = 0; t < p->out_width; t++) slope[t] *= gate;
    for (int j = 0; j < BLOCK; j++) sum += total[j];
  }
  return sum;
}

/* Rows of the gradient of an image; with moments, of what is normalised, where that is positive, and sums of it and of it
   times what is normalised. `past`: they will not be read again soon. */
static void up(const Plan *p, const Bench *d, T *dx, double *sums, int past) {
  int64_t pixels = (int64_t)p->height * p->width;
  for (int c = 0; c < p->in && p->scale; c += BLOCK) {
    V *g = d->grad + c / BLOCK * pixels, total = {0}, product = {0};
    const V *row = d->in + (int64_t)(c / BLOCK) * p->height * p->wide + p->pad;
    for (int v = 0; v < p->height; v++, row += p->wide, g += p->width)
      for (int u = 0; u < p->width; u++) {
        g[u] = where(row[u], g[u]);
        total += g[u];
        product += g[u] * row[u];
      }
    add(sums + c, total, BLOCK);
    add(sums + p->columns + c, product, BLOCK);
  }
  put_rows(d->grad, pixels, p->in, pixels, dx, past);
}

/* Gradients of the above: dx, the sum of those through all units (null: it is not wanted), and what they ask for; `through`:
   dx goes through the moments too, which are those of x. */
void separable_back(int n, const Unit *units, int64_t images, int height, int width, int in, int stride, int threads,
                    const T *x, int64_t step, const double *mean, const double *inv, A *own, T *dx, int through) {
  Plan p = plan_of(n, units, images, height, width, in, stride, threads);
  Pair *pairs = malloc(n * sizeof(Pair));
  V *first = aligned(own);
  prepare(&p, units, pairs, (A *)first, mean, inv, 1);
  ends(&p, pairs, n);
  int wanted = 0;
  size_t size = 2 * p.columns;
  for (int k = 0; k < n; k++) {
    size += (size_t)units[k].side * units[k].side * p.columns;
    wanted |= units[k].dtaps || units[k].dpoint || (is_late(units + k) && units[k].of_gate);
  }
  double *sums = calloc(size * threads, sizeof(double)), *of_gates = calloc((size_t)n * threads, sizeof(double));
  _Pragma("omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)")
  for (int thread = 0; thread < threads; thread++) {
    Bench d = bench_at(&p, first, thread);
    for (int64_t b = images * thread / threads; b < images * (thread + 1) / threads; b++) {
      double *mine = sums + size * thread + 2 * p.columns;
      if (mean || wanted) put_in(&p, &d, x + b * height * width * step, step);
      for (int k = 0; k < n; k++) {
        const Unit *u = units + k;
        for (int c = 0; c < in && (u->dpoint || (is_late(u) && u->of_gate)); c += BLOCK) convolve(&p, pairs + k, &d, c);
        down(&p, pairs + k, &d, b, p.bare && k > 0);
        if (is_late(u)) of_gates[n * thread + k] += through_gate(&p, pairs + k, &d, u->of_gate ? d.between : 0);
        for (int c = 0; c < in; c += BLOCK) {
          if (u->dtaps) tap_sums(&p, pairs + k, &d, c, mine);
          if (dx) convolve_back(&p, pairs + k, &d, c, k > 0);
        }
        mine += u->side * u->side * p.columns;
      }
      if (dx) up(&p, &d, dx + b * height * width * in, sums + size * thread, !(mean && through));
    }
    PASSED;
  }
  size_t place = 2 * p.columns;
  int64_t bench = lay(&p, 0, 0);
  for (int k = 0; k < n; k++) {
    int taps = units[k].side * units[k].side;
    A behind = is_late(units + k) ? *units[k].gate : 1; /* outer products were taken before that gate */
    if (units[k].of_gate) *units[k].of_gate += whole(of_gates, n, threads, k);
    for (int c = 0; c < in; c++) {
      for (int t = 0; t < taps && units[k].dtaps; t++) units[k].dtaps[c * taps + t] = whole(sums, size, threads, place + t * p.columns + c);
      for (int o = 0; o < units[k].out && units[k].dpoint; o++) {
        double sum = 0;
        for (int thread = 0; thread < threads; thread++) {
          const V *sums_of = first + p.head + (thread + 1) * bench - p.points + pairs[k].place;
          sum += ((const lone *)sums_of)[(int64_t)o * p.columns + c];
        }
        units[k].dpoint[(int64_t)o * in + c] = behind * sum;
      }
    }
    place += (size_t)taps * p.columns;
  }
  if (dx && mean && through)
    fall(x, step, dx, in, p.scale, p.shift, images * height * width, in, threads, sums, size, p.columns, dx);
  free(of_gates);
  free(sums);
  free(pairs);
}
