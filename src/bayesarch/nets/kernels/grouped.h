/* Convolutions of groups of channels, of images with their channels last, and their gradients. Part of rows.c.

   Pixels of a target that see the same taps of a kernel are dealt with together: those inside, those on an edge, those in
   a corner (grouped.py finds them). So nothing is padded, nothing outside an image is multiplied, and the loops over
   pixels, taps and channels ask nothing. Groups are parted first, so that the pixels of one lie side by side: as far apart
   as they are among all others, they share few places in the nearest cache. */

#define NEAR 4096 /* values of a group that are dealt with together: they stay there */
#if BLOCK > 8
#define ACROSS_ONE 12 /* pixels, or channels of a gradient, beside one register of channels */
#else
#define ACROSS_ONE 8
#endif
#define ACROSS_TWO 6
#define ACROSS 12 /* the most of these */

/* Pixels of a target that see taps tap[taps] of a kernel: pixel at[p] sees pixel of[p] by the first of them, and by tap t
   the one that is far[t] behind; all counted in an image's rows of channels. */
typedef struct {
  int pixels, taps;
  const int *of, *at, *tap, *far;
} Alike;

/* Images, and of each the pixels of source and target; groups, and of each the channels. */
typedef struct {
  int64_t images;
  int classes, source, target, groups, in, out, taps, threads;
} Layer;

static int blocks_of(int channels) { return (channels + BLOCK - 1) / BLOCK * BLOCK; }

static int images_near(const Layer *l) {
  int64_t n = NEAR / ((int64_t)l->source * l->in);
  return n > 1 ? n < l->images ? n : l->images : 1;
}

static int64_t kernels_of(const Layer *l) { return (int64_t)l->groups * l->taps * l->in * blocks_of(l->out); }

static int64_t bench_of(const Layer *l) {
  return (int64_t)images_near(l) * l->groups * ((int64_t)l->source * l->in + (int64_t)l->target * blocks_of(l->out));
}

/* Numbers that this works in: kernels, or sums for those of each thread, and a thread's pixels. */
int64_t grouped_room(const Layer *l) { return (kernels_of(l) + bench_of(l)) * l->threads; }

/* Copy what a pixel has of each group to their benches, which are `far` apart. */
static void part(const A *row, int groups, int channels, A *to, int64_t far) {
  for (int g = 0; g < groups; g++, to += far) {
    int c = 0;
    for (; c + 8 <= channels; c += 8, row += 8) put(to + c, get(row, 8), 8);
    for (; c < channels; c++) to[c] = *row++;
  }
}

/* Sums of n pixels, of which x[of[q]] is the first seen, for `some` channels in m registers; `by` are the kernels. */
INLINE void pixels_by(const Alike *a, const A *x, const int64_t *of, int in, const A *by, int wide, const int64_t *at,
                      int some, A *y, const int n, const int m) {
  V sum[ACROSS][2];
  const A *from[ACROSS];
  EACH(q, n) {
    EACH(j, m) sum[q][j] = (V){0};
    from[q] = x + of[q];
  }
  for (int t = 0; t < a->taps; t++) {
    const A *u = by + (int64_t)a->tap[t] * in * wide;
    int64_t far = (int64_t)a->far[t] * in;
    for (int c = 0; c < in; c++, u += wide) {
      V k[2];
      EACH(j, m) {
        k[j] = get(u + j * BLOCK, BLOCK);
        HELD(k[j])
      }
      EACH(q, n) {
        A v = from[q][far + c];
        EACH(j, m) sum[q][j] += v * k[j];
      }
    }
  }
  EACH(q, n) EACH(j, m) put_some(y + at[q] + j * BLOCK, sum[q][j], some - j * BLOCK);
}

#define OVER_PIXELS(name, many, m)                                                                              \
  static OWN void name(const Alike *a, const A *x, const int64_t *of, int64_t n, int in, const A *by, int wide, \
                       const int64_t *at, int some, A *y) {                                                     \
    int64_t p = 0;                                                                                              \
    for (; p + many <= n; p += many) pixels_by(a, x, of + p, in, by, wide, at + p, some, y, many, m);           \
    for (; p + 4 <= n; p += 4) pixels_by(a, x, of + p, in, by, wide, at + p, some, y, 4, m);                    \
    for (; p < n; p++) pixels_by(a, x, of + p, in, by, wide, at + p, some, y, 1, m);                            \
  }
OVER_PIXELS(pixels_one, ACROSS_ONE, 1)
OVER_PIXELS(pixels_two, ACROSS_TWO, 2)

/* Where a class's pixels of `count` images begin: in a group's source, side by side, and in the target. */
static int64_t places(const Layer *l, const Alike *a, int count, int64_t *of, int64_t *at) {
  int64_t n = 0;
  for (int64_t b = 0; b < count; b++)
    for (int p = 0; p < a->pixels; p++, n++) {
      of[n] = (b * l->source + a->of[p]) * l->in;
      at[n] = (b * l->target + a->at[p]) * l->groups * l->out;
    }
  return n;
}

/* y = the convolution of x, `in` channels a group, with kernels w[groups][out][taps][in]; `back`: with
   w[groups][in][taps][out], which is what the gradient of such a convolution goes back by. */
void grouped(const Layer *given, const Alike *classes, int back, const A *x, const A *w, A *own, A *y) {
  Layer l = *given;
  int wide = blocks_of(l.out), near = images_near(&l);
  int64_t each = (int64_t)l.taps * l.in * wide, room = (int64_t)near * l.target;
  _Pragma("omp parallel for num_threads(l.threads) schedule(static) if (l.threads > 1)")
  for (int g = 0; g < l.groups; g++) {
    A *u = own + g * each;
    const A *k = w + (int64_t)g * l.in * l.out * l.taps;
    memset(u, 0, each * sizeof(A));
    for (int t = 0; t < l.taps; t++)
      for (int c = 0; c < l.in; c++, u += wide) {
        if (back) memcpy(u, k + ((int64_t)c * l.taps + t) * l.out, l.out * sizeof(A));
        else
          for (int o = 0; o < l.out; o++) u[o] = k[((int64_t)o * l.taps + t) * l.in + c];
      }
  }
  int64_t *all = malloc(2 * room * l.threads * sizeof(int64_t));
  _Pragma("omp parallel for num_threads(l.threads) schedule(static, 1) if (l.threads > 1)")
  for (int thread = 0; thread < l.threads; thread++) {
    A *bench = own + kernels_of(&l) + bench_of(&l) * thread;
    int64_t *of = all + 2 * room * thread, *at = of + room, end = l.images * (thread + 1) / l.threads, n;
    for (int64_t b = l.images * thread / l.threads; b < end; b += near) {
      int count = end - b < near ? end - b : near;
      for (int k = 0, first = 0; k < l.classes; first += n, k++) n = places(&l, classes + k, count, of + first, at + first);
      for (int64_t r = 0; r < (int64_t)count * l.source; r++)
        part(x + (b * l.source + r) * l.groups * l.in, l.groups, l.in, bench + r * l.in, near * l.source * l.in);
      for (int g = 0; g < l.groups; g++) {
        const A *by = own + g * each, *from = bench + (int64_t)g * near * l.source * l.in;
        A *to = y + b * l.target * l.groups * l.out + (int64_t)g * l.out;
        int64_t p = 0;
        for (int k = 0; k < l.classes; p += n, k++) {
          const Alike *a = classes + k;
          n = (int64_t)count * a->pixels;
          int o = 0;
          for (; SIDEWAYS == 2 && l.out - o > BLOCK; o += 2 * BLOCK)
            pixels_two(a, from, of + p, n, l.in, by + o, wide, at + p, l.out - o, to + o);
          for (; o < l.out; o += BLOCK) pixels_one(a, from, of + p, n, l.in, by + o, wide, at + p, l.out - o, to + o);
        }
      }
    }
  }
  free(all);
}

/* to[n][wide] += sums over pixels of n channels of x times the gradient slope[pixels][wide], m registers of it. */
INLINE void channels_by(const A *x, const int64_t *of, int64_t pixels, const A *slope, int wide, A *to, const int n,
                        const int m) {
  V sum[ACROSS][2];
  EACH(q, n) EACH(j, m) sum[q][j] = (V){0};
  for (int64_t p = 0; p < pixels; p++, slope += wide) {
    const A *from = x + of[p];
    V k[2];
    EACH(j, m) {
      k[j] = get(slope + j * BLOCK, BLOCK);
      HELD(k[j])
    }
    EACH(q, n) {
      A v = from[q];
      EACH(j, m) sum[q][j] += v * k[j];
    }
  }
  EACH(q, n) EACH(j, m) {
    A *here = to + (int64_t)q * wide + j * BLOCK;
    put(here, get(here, BLOCK) + sum[q][j], BLOCK);
  }
}

#define OVER_CHANNELS(name, many, m)                                                                                  \
  static OWN void name(const A *x, int in, const int64_t *of, int64_t pixels, const A *slope, int wide, A *to) {      \
    int c = 0;                                                                                                        \
    for (; c + many <= in; c += many)                                                                                 \
      channels_by(x + c, of, pixels, slope, wide, to + (int64_t)c * wide, many, m);                                   \
    for (; c + 4 <= in; c += 4) channels_by(x + c, of, pixels, slope, wide, to + (int64_t)c * wide, 4, m);            \
    for (; c < in; c++) channels_by(x + c, of, pixels, slope, wide, to + (int64_t)c * wide, 1, m);                    \
  }
OVER_CHANNELS(channels_one, 8, 1)
OVER_CHANNELS(channels_two, ACROSS_TWO, 2)

/* dw[groups][out][taps][in] = the gradient of kernels where `slope` is that of the output. */
void grouped_kernel(const Layer *given, const Alike *classes, const A *x, const A *slope, A *own, A *dw) {
  Layer l = *given;
  int wide = blocks_of(l.out), near = images_near(&l);
  int64_t each = (int64_t)l.taps * l.in * wide, all_of = kernels_of(&l), room = (int64_t)near * l.target;
  int64_t *all = malloc(2 * room * l.threads * sizeof(int64_t));
  _Pragma("omp parallel for num_threads(l.threads) schedule(static, 1) if (l.threads > 1)")
  for (int thread = 0; thread < l.threads; thread++) {
    A *mine = own + all_of * thread, *bench = own + all_of * l.threads + bench_of(&l) * thread;
    A *slopes = bench + (int64_t)near * l.groups * l.source * l.in;
    int64_t *of = all + 2 * room * thread, *at = of + room, end = l.images * (thread + 1) / l.threads, n;
    memset(mine, 0, all_of * sizeof(A));
    memset(slopes, 0, room * l.groups * wide * sizeof(A));
    for (int64_t b = l.images * thread / l.threads; b < end; b += near) {
      int count = end - b < near ? end - b : near;
      for (int k = 0, first = 0; k < l.classes; first += n, k++) n = places(&l, classes + k, count, of + first, at + first);
      for (int64_t r = 0; r < (int64_t)count * l.source; r++)
        part(x + (b * l.source + r) * l.groups * l.in, l.groups, l.in, bench + r * l.in, near * l.source * l.in);
      for (int64_t p = 0; p < (int64_t)count * l.target; p++)
        part(slope + b * l.target * l.groups * l.out + at[p], l.groups, l.out, slopes + p * wide, room * wide);
      for (int g = 0; g < l.groups; g++) {
        const A *first = bench + (int64_t)g * near * l.source * l.in, *by = slopes + g * room * wide;
        int64_t p = 0;
        for (int k = 0; k < l.classes; p += n, k++) {
          const Alike *a = classes + k;
          n = (int64_t)count * a->pixels;
          for (int t = 0; t < a->taps; t++) {
            const A *from = first + (int64_t)a->far[t] * l.in;
            A *to = mine + g * each + (int64_t)a->tap[t] * l.in * wide;
            int o = 0;
            for (; SIDEWAYS == 2 && wide - o >= 2 * BLOCK; o += 2 * BLOCK)
              channels_two(from, l.in, of + p, n, by + p * wide + o, wide, to + o);
            for (; o < wide; o += BLOCK) channels_one(from, l.in, of + p, n, by + p * wide + o, wide, to + o);
          }
        }
      }
    }
  }
  free(all);
  _Pragma("omp parallel for num_threads(l.threads) schedule(static) if (l.threads > 1)")
  for (int g = 0; g < l.groups; g++) {
    A *sum = own + g * each, *to = dw + (int64_t)g * l.out * l.taps * l.in;
    for (int thread = 1; thread < l.threads; thread++)
      for (int64_t i = 0; i < each; i++) sum[i] += sum[thread * all_of + i];
    for (int o = 0; o < l.out; o++)
      for (int i = 0; i < l.taps * l.in; i++) *to++ = sum[(int64_t)i * wide + o];
  }
}
