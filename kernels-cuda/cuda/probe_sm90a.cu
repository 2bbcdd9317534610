// As probe.cu, of Hopper's products and copies: how a tile lies in shared memory, what a descriptor says of it, which thread of a
// warpgroup holds which element, and where a copy puts a tile.
#include "hopper.cuh"

constexpr u32 WARPGROUP = 128;
constexpr u32 TILE_ROWS = 128;
constexpr u32 COLUMNS = 64;
constexpr u32 TILE_WORDS = TILE_ROWS * COLUMNS / 2;

struct ProbeArgs {
    const u32* in;
    u32* out;
};

// What the tile is to hold, word by word; then of each thread its words of a and of c. The product is with 16 columns from `first`
// on.
DEVICE void multiply_tile(const ProbeArgs& args, u32 first) {
    DYNAMIC_SHARED(u32, tile);
    for (u32 i = threadIdx.x; i < TILE_WORDS; i += WARPGROUP) tile[i] = args.in[i];
    ptx::show_to_products();
    __syncthreads();
    const u32* mine = args.in + TILE_WORDS + threadIdx.x * 68;
    u32 a[4];
    float c[64];
#pragma unroll
    for (u32 i = 0; i < 4; i++) a[i] = mine[i];
#pragma unroll
    for (u32 i = 0; i < 64; i++) c[i] = __uint_as_float(mine[4 + i]);
    ptx::begin_products();
    ptx::multiply_64x128(c, a, ptx::next_columns(ptx::describe_tile(tile), first));
    ptx::commit_products();
    AWAIT_PRODUCTS(0);
#pragma unroll
    for (u32 i = 0; i < 64; i++) args.out[threadIdx.x * 64 + i] = __float_as_uint(c[i]);
}
KERNEL(probe_wgmma_0, ProbeArgs, WARPGROUP) { multiply_tile(args, 0); }
KERNEL(probe_wgmma_48, ProbeArgs, WARPGROUP) { multiply_tile(args, 48); }

struct TileProbeArgs {
    TensorMap map;  // tiles of TILE_ROWS x COLUMNS
    u32* out;
    u32 column, row;
};

// The tile of a matrix that begins at a column and a row, as it comes to shared memory, word by word.
KERNEL(probe_tma, TileProbeArgs, WARPGROUP) {
    DYNAMIC_SHARED(u32, tile);
    SHARED(u64, full, 1);
    if (threadIdx.x == 0) {
        ptx::make_barriers(full, 1, 1);
        ptx::fetch_map(args.map);
        ptx::arrive_expecting(full, TILE_WORDS * 4);
        ptx::copy_tile(tile, args.map, args.column, args.row, full);
    }
    __syncthreads();
    WAIT_BARRIER(full, 0);
    for (u32 i = threadIdx.x; i < TILE_WORDS; i += WARPGROUP) args.out[i] = tile[i];
}
