/* Passes over rows of channels that a gated sum and its gradients need, in as few readings of memory as there can be.

   A tensor of shape (B, C, H, W) with its channels last is B H W rows of C values: row r begins at x + r * step, where
   step is at least C. Values are of one type, as -DOF_f32, -DOF_f64 or -DOF_bf16 (16 bits, computed in float) asks.
   Rows are dealt out to threads in equal parts, and sums of parts are added in the order of the threads, so that runs on
   equally many threads are equal to the bit. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef BLOCK
#if defined(__AVX512F__) && !defined(OF_f64)
#define BLOCK 16 /* channels that are taken together: what a register holds */
#else
#define BLOCK 8 /* wider vectors would be made of several registers, and compilers are bad at it */
#endif
#endif
#if BLOCK > 8
#define MORE(n) , n, n, n, n, n, n, n, n
#else
#define MORE(n)
#endif
#define CHUNK 128 /* rows that are summed in the working type before they go to a sum in double */

#if defined(__has_builtin) && !defined(PLAIN)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES
#endif
#endif

#define INLINE static inline __attribute__((always_inline))
#define OWN __attribute__((noinline))

/* Keep a block in a register: compilers would rather load it again for each product. */
#if BLOCK == 16 && defined(__AVX512F__) && !defined(OF_f64)
#define HELD(v) __asm__("" : "+v"(v));
#elif BLOCK == 8 && defined(__AVX__) && !defined(OF_f64)
#define HELD(v) __asm__("" : "+x"(v));
#else
#define HELD(v)
#endif

/* Store a block past the caches, where a register holds it. */
#if defined(__AVX512F__) && BLOCK == 16 && defined(OF_f32)
#define PAST(to, row) _mm512_stream_ps(to, (__m512)(row))
#elif defined(__AVX__) && BLOCK == 8 && defined(OF_f32)
#define PAST(to, row) _mm256_stream_ps(to, (__m256)(row))
#elif defined(__AVX__) && BLOCK == 16 && defined(OF_bf16)
#define PAST(to, row) _mm256_stream_si256((__m256i *)(to), (__m256i)(row))
#endif
#ifdef PAST
#include <immintrin.h>
#define PASSED _mm_sfence()
#else
#define PASSED
#endif

#define EACH(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)

typedef float floats __attribute__((vector_size(4 * BLOCK)));
typedef double doubles __attribute__((vector_size(8 * BLOCK)));
typedef uint32_t words __attribute__((vector_size(4 * BLOCK)));
typedef int32_t ints __attribute__((vector_size(4 * BLOCK)));
typedef int64_t longs __attribute__((vector_size(8 * BLOCK)));
typedef uint16_t halves __attribute__((vector_size(2 * BLOCK)));

INLINE floats widened(halves x) { return (floats)(__builtin_convertvector(x, words) << 16); }

INLINE halves narrowed(floats y) { /* to the nearest, ties to even */
  words bits = (words)y, near = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, number = (words)(y == y);
  return __builtin_convertvector((near & number) | (0x7fc0 & ~number), halves);
}

/* The sum over threads of what each has at `place` of its `size` sums. */
static double whole(const double *sums, size_t size, int threads, size_t place) {
  double sum = 0;
  for (int t = 0; t < threads; t++) sum += sums[size * t + place];
  return sum;
}

#ifdef OF_f32
#define T float
#define ROW floats
#define V floats
#define PLACES ints
#define A float
#define WIDE(x) (x)
#define NARROW(y) (y)
#endif

#ifdef OF_f64
#define T double
#define ROW doubles
#define V doubles
#define PLACES longs
#define A double
#define WIDE(x) (x)
#define NARROW(y) (y)
#endif

#ifdef OF_bf16
#define T uint16_t
#define ROW halves
#define V floats
#define PLACES ints
#define A float
#define WIDE(x) widened(x)
#define NARROW(y) narrowed(y)
#endif

#include "block.h"
#include "rows.h"
#include "images.h"
#include "separable.h"
#include "pairs.h"
#ifndef OF_bf16 /* the library computes these in bf16, which is faster */
#include "grouped.h"
#include "points.h"
#include "winograd.h"
#include "node.h"
#endif
