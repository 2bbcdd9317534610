// The ceiling of Hopper's products that run beside the threads (wgmma), used as gemm_sm90a.cu does: the left side from registers,
// the right side a tile of 128 rows x 64 columns in shared memory.
#include "hopper.cuh"

constexpr u32 THREADS = 256;
constexpr u32 TILE_ROWS = 128;
constexpr u32 COLUMNS = 64;

struct PeakArgs {
    u32* out;
    u32 rounds;
};

// A round is a tile: four products of 64 x 128 x 16 of each warpgroup.
KERNEL(roof_wgmma_f16, PeakArgs, THREADS) {
    DYNAMIC_SHARED(u32, tile);
    // Ordinary numbers: a device draws less power for zeros, and may run faster.
    for (u32 i = threadIdx.x; i < TILE_ROWS * COLUMNS / 2; i += THREADS)
        tile[i] = ptx::pack_halves(float(i % 61) * 0.03f - 0.9f, float(i % 47) * -0.04f + 0.9f);
    ptx::show_to_products();
    __syncthreads();
    u32 a[4];
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = ptx::pack_halves(float((threadIdx.x + i) % 53) * 0.03f - 0.8f, 0.5f - float(i));
    float c[64];
#pragma unroll
    for (int i = 0; i < 64; i++) c[i] = float(i);
    const u64 b = ptx::describe_tile(tile);
    for (u32 round = 0; round < args.rounds; round++) {
        ptx::begin_products();
#pragma unroll
        for (u32 k = 0; k < COLUMNS; k += 16) ptx::multiply_64x128(c, a, ptx::next_columns(b, k));
        ptx::commit_products();
        AWAIT_PRODUCTS(0);
    }
    float folded = 0.0f;
#pragma unroll
    for (int i = 0; i < 64; i++) folded += c[i];
    if (folded == 12345.678f) args.out[0] = __float_as_uint(folded);
}
