// Wrong uses of copies and barriers, and a right one, for tests that the emulator tells them apart (tests/emulator.rs). A device
// would hang, read what is not there yet, or say nothing.
#include "hopper.cuh"

struct NoArgs {};

constexpr u32 THREADS = 32;
constexpr u32 TILE_ROWS = 8;
constexpr u32 TILE_BYTES = TILE_ROWS * 128;
constexpr u16 ONE = 0x3c00;

// A matrix of as many rows as a tile has, all ones.
static TensorMap ones(u32 columns) {
    static const std::vector<u16> values(TILE_ROWS * 64, ONE);
    emu::TensorMap map{};
    map.tag = emu::TensorMap::TAG;
    map.base = reinterpret_cast<const unsigned char*>(values.data());
    map.columns = map.box_columns = columns, map.rows = map.box_rows = TILE_ROWS;
    map.row_bytes = 128, map.element_bytes = 2;
    TensorMap out;
    memcpy(&out, &map, sizeof(map));
    return out;
}

struct Use {
    u32 offset = 0;            // of the tile from a place where it may be
    u32 expected = TILE_BYTES;
    u32 columns = 64;
    bool made = true;          // the barrier
    bool mapped = true;        // the matrix
    bool awaited = true;
    u32 arrivals = 1;
};

static void bring(Use use) {
    DYNAMIC_SHARED(u8, tile);
    SHARED(u64, full, 1);
    const TensorMap map = use.mapped ? ones(use.columns) : TensorMap{};
    if (threadIdx.x == 0) {
        if (use.made) ptx::make_barriers(full, 1, 1);
        for (u32 i = 0; i < use.arrivals; i++) ptx::arrive_expecting(full, use.expected);
        ptx::copy_tile(tile + use.offset, map, 0, 0, full);
    }
    __syncthreads();
    if (use.awaited) WAIT_BARRIER(full, 0);
    for (u32 i = threadIdx.x; i < TILE_BYTES / 2; i += THREADS)
        if (reinterpret_cast<u16*>(tile)[i] != ONE) emu::fail("an element that is not one");
}

#define USE(name, ...)                   \
    KERNEL(misuse_##name, NoArgs, THREADS) { \
        Use use;                         \
        __VA_ARGS__;                     \
        bring(use);                      \
    }
USE(none, (void)use)
USE(tile_not_aligned, use.offset = 128)
USE(no_room, use.offset = 2048)
USE(narrow_tile, use.columns = 32)
USE(no_map, use.mapped = false)
USE(no_barrier, use.made = false)
USE(too_few_bytes_expected, use.expected = TILE_BYTES / 2)
USE(too_many_bytes_expected, use.expected = TILE_BYTES * 2)
USE(more_bytes_than_a_barrier_counts, use.expected = 1 << 20)
USE(arrival_too_many, use.arrivals = 2)
USE(not_awaited, use.awaited = false)
