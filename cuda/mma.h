// Matrix products on tensor cores: one warp multiplies one tile. All 32 lanes call together.
#pragma once

#include "device.h"

namespace lte {

// d[16,8] += a[16,16] b[16,8]; bf16 factors, sums in f32. Lane l holds, with g = l / 4, t = l % 4:
//   a[0] = A[g, 2t .. 2t+1]    a[1] = A[g+8, 2t ..]    a[2] = A[g, 2t+8 ..]    a[3] = A[g+8, 2t+8 ..]
//   b[0] = B[2t .. 2t+1, g]    b[1] = B[2t+8 .. 2t+9, g]         two bf16 a word, the lower one first
//   d[0..1] = D[g, 2t .. 2t+1]    d[2..3] = D[g+8, 2t .. 2t+1]
// (PTX: mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32)
#ifdef LTE_SIMT
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     simt::Site site = simt::Site::here()) {
  struct Fragments {
    float* d;
    const uint32_t *a, *b;
  } mine{d, a, b};
  simt::warp_meet(
      "mma_bf16", site, kAllLanes,
      [](void* const data[32], unsigned lanes) {
        if (lanes != kAllLanes) simt::fault("mma_bf16 needs all 32 lanes of a warp");
        auto half = [](uint32_t word, int upper) {
          return to_float(__ushort_as_bfloat16(static_cast<uint16_t>(word >> 16 * upper)));
        };
        float A[16][16], B[16][8];
        for (int l = 0; l < 32; ++l) {
          const auto* f = static_cast<const Fragments*>(data[l]);
          for (int i = 0; i < 8; ++i) {  // i: word i / 2, half i % 2
            A[l / 4 + i / 2 % 2 * 8][l % 4 * 2 + i % 2 + i / 4 * 8] = half(f->a[i / 2], i % 2);
          }
          for (int i = 0; i < 4; ++i) {
            B[l % 4 * 2 + i % 2 + i / 2 * 8][l / 4] = half(f->b[i / 2], i % 2);
          }
        }
        for (int l = 0; l < 32; ++l) {
          for (int i = 0; i < 4; ++i) {
            const int row = l / 4 + i / 2 * 8, col = l % 4 * 2 + i % 2;
            float sum = static_cast<const Fragments*>(data[l])->d[i];
            for (int k = 0; k < 16; ++k) sum += A[row][k] * B[k][col];
            static_cast<const Fragments*>(data[l])->d[i] = sum;
          }
        }
      },
      &mine);
}
#else
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// Four matrices of 8 x 8 bf16 from shared memory: lane l names row l % 8 of matrix l / 8, 16 bytes. Lane l gets
// r[i] = M_i[l / 4, 2 (l % 4) ..], or with kTurned M_i[2 (l % 4) .. , l / 4]: two bf16, the lower one first.
// (PTX: ldmatrix.sync.aligned.m8n8.x4[.trans].shared.b16)
#ifdef LTE_SIMT
template <bool kTurned>
void load_matrices(uint32_t (&r)[4], const __nv_bfloat16* row,
                   simt::Site site = simt::Site::here()) {
  struct Rows {
    uint32_t* r;
    const __nv_bfloat16* row;
  } mine{r, row};
  simt::check_aligned(row, 16);
  simt::warp_meet(
      "load_matrices", site, kAllLanes,
      [](void* const data[32], unsigned) {
        const auto value = [&](int matrix, int i, int j) {
          const __nv_bfloat16* from = static_cast<const Rows*>(data[matrix * 8 + i])->row;
          return static_cast<uint32_t>(__bfloat16_as_ushort(from[j]));
        };
        for (int l = 0; l < 32; ++l) {
          for (int m = 0; m < 4; ++m) {
            const int one = l / 4, two = l % 4 * 2;
            static_cast<const Rows*>(data[l])->r[m] =
                kTurned ? value(m, two, one) | value(m, two + 1, one) << 16
                        : value(m, one, two) | value(m, one, two + 1) << 16;
          }
        }
      },
      &mine);
}
#else
template <bool kTurned>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const __nv_bfloat16* row) {
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (kTurned) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
  }
}
#endif

}  // namespace lte
