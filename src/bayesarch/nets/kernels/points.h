/* Polynomials at the points 0, 1, -1, 2, -2 and infinity, where they are multiplied, and back (winograd.py has the
   formulae). Part of rows.c. */

#define SIDE 6
#define SQUARE (SIDE * SIDE)

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
  y[1] = b + 2 * q;
  if (m > 2) y[2] = a + 4 * p;
  if (m > 3) y[3] = b + 8 * q;
  if (m > 4) y[4] = a + 16 * p;
  y[m - 1] += v[5];
}

/* R g: six values of m. */
INLINE void spread(const V *g, V *z, const int m) {
  V even = g[0], odd = g[1], far = g[0], wide = 2 * g[1];
  if (m > 2) {
    even += g[2];
    far += 4 * g[2];
  }
  if (m > 3) {
    odd += g[3];
    wide += 8 * g[3];
  }
  if (m > 4) {
    even += g[4];
    far += 16 * g[4];
  }
  z[0] = g[0];
  z[1] = even + odd;
  z[2] = even - odd;
  z[3] = far + wide;
  z[4] = far - wide;
  z[5] = g[m - 1];
}

/* Over the product of the distances of points 0, 1, -1, 2 and -2 to one another; infinity has none. */
static const A APART[SIDE] = {(A)1 / 4, (A)-1 / 6, (A)-1 / 6, (A)1 / 24, (A)1 / 24, 1};

INLINE void at_points(const V *d, V *o, const int n) {
  if (n == SIDE) seen(d, o);
  else spread(d, o, n);
}
