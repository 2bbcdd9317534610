// What only Hopper has: products of a whole warpgroup that run beside its threads (PTX ISA, wgmma; sm_90a), copies of whole
// tiles that one thread begins (cp.async.bulk.tensor, the tensor memory accelerator, TMA), and the barriers in shared memory by
// which producers and consumers of tiles hand them over (mbarrier).
#pragma once

#include "fragments.cuh"

// A matrix of f16 in global memory, and the tiles that it is brought in: 128 bytes of each of some rows. The host makes it
// (src/driver/tensor_map.rs), and a kernel takes it as a parameter.
struct alignas(64) TensorMap {
    u64 opaque[16];
};

namespace ptx {

// ---- barriers in shared memory
//
// A barrier's phases are counted from 0, and each ends when all arrivals have come, and all bytes of copies that arrivals told
// it to expect. Waiting for parity p waits for the end of the latest phase of that parity; of a new barrier, the phase before
// the first has ended.

#ifdef RUSTAI_EMULATOR
struct EmuBarrier {
    u64 expected : 12, pending : 12, phase : 4, tag : 12;
    long long bytes : 24;

    void end_phase() {
        if (pending) return;
        if (bytes < 0) emu::fail("more bytes come to a barrier than it was told to expect");
        if (bytes == 0) phase++, pending = expected;
    }
};
static_assert(sizeof(EmuBarrier) == 8, "as large as a barrier");
constexpr u32 EMU_BARRIER = 0xba8;
inline EmuBarrier& emu_barrier(u64* barrier) {
    auto& it = *reinterpret_cast<EmuBarrier*>(barrier);
    if (it.tag != EMU_BARRIER) emu::fail("a barrier is used before it is made");
    return it;
}
inline void emu_arrive(u64* barrier, u32 bytes) {
    // What a barrier can count (PTX ISA, "Size and alignment of mbarrier object").
    if (bytes >= 1 << 20) emu::fail("more bytes than a barrier can count");
    EmuBarrier& it = emu_barrier(barrier);
    if (it.pending == 0) emu::fail("more arrivals at a barrier than it was made for");
    it.bytes += bytes;
    it.pending--;
    it.end_phase();
}
#endif

// One thread makes barriers, and the block synchronizes before anyone uses them, a copy included.
DEVICE void make_barriers(u64* barriers, u32 count, u32 arrivals) {
#ifdef RUSTAI_EMULATOR
    for (u32 i = 0; i < count; i++) {
        EmuBarrier made{};
        made.expected = made.pending = arrivals, made.tag = EMU_BARRIER;
        memcpy(barriers + i, &made, sizeof(made));
    }
#else
    for (u32 i = 0; i < count; i++) {
        u32 at = static_cast<u32>(__cvta_generic_to_shared(barriers + i));
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
#endif
}

DEVICE void arrive(u64* barrier) {
#ifdef RUSTAI_EMULATOR
    emu_arrive(barrier, 0);
#else
    u32 at = static_cast<u32>(__cvta_generic_to_shared(barrier));
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
#endif
}

// Arrives, and has the phase wait for so many bytes of copies besides.
DEVICE void arrive_expecting(u64* barrier, u32 bytes) {
#ifdef RUSTAI_EMULATOR
    emu_arrive(barrier, bytes);
#else
    u32 at = static_cast<u32>(__cvta_generic_to_shared(barrier));
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
#endif
}

#ifdef RUSTAI_EMULATOR
inline void emu_wait(u64* barrier, u32 parity, unsigned line) {
    if (emu::drops(4, line)) return;
    emu_barrier(barrier);
    emu::poll([=] { return emu_barrier(barrier).phase % 2 != parity; });
}
#define WAIT_BARRIER(barrier, parity) ptx::emu_wait(barrier, parity, __LINE__)
#else
DEVICE void wait_barrier(u64* barrier, u32 parity) {
    u32 at = static_cast<u32>(__cvta_generic_to_shared(barrier)), done;
    do {
        asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                     : "=r"(done)
                     : "r"(at), "r"(parity)
                     : "memory");
    } while (!done);
}
#define WAIT_BARRIER(barrier, parity) ptx::wait_barrier(barrier, parity)
#endif

// ---- copies of tiles

// Has the map fetched, which the first copy would wait for otherwise.
DEVICE void fetch_map(const TensorMap& map) {
#ifdef RUSTAI_EMULATOR
    if (map.opaque[0] != emu::TensorMap::TAG) emu::fail("a tensor map that no driver made");
#else
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#endif
}

#ifdef RUSTAI_EMULATOR
inline void emu_copy_tile(void* to, const TensorMap& from, u32 column, u32 row, u64* barrier) {
    emu::TensorMap map;
    memcpy(&map, &from, sizeof(map));
    const u32 row_bytes = map.box_columns * map.element_bytes, bytes = map.box_rows * row_bytes;
    auto start = static_cast<unsigned char*>(to);
    if (map.tag != emu::TensorMap::TAG) emu::fail("a tensor map that no driver made");
    if (reinterpret_cast<uintptr_t>(&from) % 64) emu::fail("a tensor map at an address that is no multiple of 64");
    if (row_bytes != 128) emu::fail("a tile whose rows are not 128 bytes");
    if (!emu::is_shared(to, bytes)) emu::fail("a copy of a tile to where there is no room for it in shared memory");
    if ((start - emu::block->memory.data()) % 1024) emu::fail("a swizzled tile at an address that is no multiple of 1024");
    emu_barrier(barrier);
    // It may be written from now on, so nobody may read it.
    if (!emu::early) memset(to, emu::POISON, bytes);
    emu::begin_bulk_copy([=] {
        for (u32 r = 0; r < map.box_rows; r++)
            for (u32 c = 0; c < map.box_columns; c++) {
                u32 at = r * row_bytes + c * map.element_bytes;
                at ^= (at >> 7 & 7) << 4;
                const bool inside = u64(row) + r < map.rows && u64(column) + c < map.columns;
                const auto* element = map.base + (u64(row) + r) * map.row_bytes + (u64(column) + c) * map.element_bytes;
                if (inside) memcpy(start + at, element, map.element_bytes);
                else memset(start + at, 0, map.element_bytes);
            }
        EmuBarrier& it = emu_barrier(barrier);
        it.bytes -= bytes;
        it.end_phase();
    });
}
#endif

// Begins to bring the tile whose first element is at `column` and `row`; what is outside the matrix comes as zeros. Row r of it
// lies at 128 r of `to`, a multiple of 1024, its 16-byte piece p at place p ^ r % 8 (the 128-byte swizzle). When all of it is
// there, the barrier counts its bytes, those outside the matrix too, of which the thread has told it.
DEVICE void copy_tile(void* to, const TensorMap& map, u32 column, u32 row, u64* barrier) {
#ifdef RUSTAI_EMULATOR
    emu_copy_tile(to, map, column, row, barrier);
#else
    u32 at = static_cast<u32>(__cvta_generic_to_shared(to)), counter = static_cast<u32>(__cvta_generic_to_shared(barrier));
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(at),
                 "l"(&map), "r"(column), "r"(row), "r"(counter)
                 : "memory");
#endif
}

// ---- registers
//
// All threads of a warpgroup give registers back down to COUNT each, or wait until there are enough to have COUNT. What the
// block's warpgroups have together is at most what they began with, COUNT a multiple of 8.

template <u32 COUNT>
DEVICE void give_registers_back() {
    static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256, "what setmaxnreg takes");
#ifndef RUSTAI_EMULATOR
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

template <u32 COUNT>
DEVICE void take_registers() {
    static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256, "what setmaxnreg takes");
#ifndef RUSTAI_EMULATOR
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

// ---- products of a warpgroup
//
// A tile in shared memory, for the right side: rows of 64 f16, of which 8 are 1024 bytes, at a multiple of 1024; the 16-byte piece
// c of row r is at place c ^ r % 8 of the row (the 128-byte swizzle). A descriptor names the first column (PTX ISA,
// "Matrix-Descriptor Format"): bits 0-13 the address, 32-45 the distance of 8 rows, both without their last four bits; 62-63
// the swizzle.

DEVICE u64 describe_tile(const void* tile) {
#ifdef RUSTAI_EMULATOR
    const u32 at = u32(static_cast<const unsigned char*>(tile) - emu::block->memory.data());
#else
    const u32 at = static_cast<u32>(__cvta_generic_to_shared(tile));
#endif
    return (at & 0x3ffff) >> 4 | u64(1) << 16 | u64(1024 >> 4) << 32 | u64(1) << 62;
}

// As the address moves on by so many columns of 2 bytes; within a row.
DEVICE u64 next_columns(u64 descriptor, u32 columns) { return descriptor + (columns * 2 >> 4); }

// What this thread wrote to shared memory is there for products that run beside it, once a barrier has told of it.
DEVICE void show_to_products() {
#ifndef RUSTAI_EMULATOR
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Registers of a product are not to be touched between these two; the first goes before the first product.
DEVICE void begin_products() {
#ifndef RUSTAI_EMULATOR
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
DEVICE void commit_products() {
#ifdef RUSTAI_EMULATOR
    auto& me = *emu::block->current;
    me.product_groups.push_back(me.ungrouped_products);
    me.ungrouped_products = 0;
#else
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Waits until at most N of the committed groups are under way.
#ifdef RUSTAI_EMULATOR
inline void emu_await_products(size_t left, unsigned line) {
    auto& me = *emu::block->current;
    if (emu::drops(5, line)) {
        // What is never awaited never arrives.
        me.products.clear();
        me.product_groups.clear();
        return;
    }
    emu::finish_groups(me.products, me.product_groups, left);
}
#define AWAIT_PRODUCTS(n) ptx::emu_await_products(n, __LINE__)
#else
template <int N>
DEVICE void await_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
#define AWAIT_PRODUCTS(n) ptx::await_products<n>()
#endif

// c += a b, begun here and over when it is awaited; until then a and c stay as they are. 64 rows of a, 16 of each warp, laid out as for `mma_f16`, times 128 rows of b's tile, of 16 columns each. Of the
// results, c[4 n ...] are those that `mma_f16` has for columns 8 n to 8 n + 7.
DEVICE void multiply_64x128(float (&c)[64], const u32 (&a)[4], u64 b) {
#ifdef RUSTAI_EMULATOR
    struct Request {
        float* c;
        const u32* a;
        u64 b;
    } mine{c, a, b};
    auto& me = *emu::block->current;
    emu::put_off(me.products, me.ungrouped_products, [mine] {
        emu::together(mine, [](auto& all) {
            float left[64][16], right[128][16];
            for (u32 n = 0; n < 128; n++)
                for (u32 k = 0; k < 16; k++) {
                    const u64 b = all[0]->b;
                    u32 at = u32(b & 0x3fff) << 4;
                    at += n / 8 * (u32(b >> 32 & 0x3fff) << 4) + n % 8 * 128 + k * 2;
                    at ^= (at >> 7 & 7) << 4;
                    u16 bits;
                    memcpy(&bits, emu::block->memory.data() + at, 2);
                    right[n][k] = half_to_float(bits);
                }
            for (u32 row = 0; row < 64; row++)
                for (u32 k = 0; k < 16; k++) {
                    const auto& from = *all[row / 16 * 32 + row % 8 * 4 + k % 8 / 2];
                    left[row][k] = half_to_float(u16(from.a[row % 16 / 8 + k / 8 * 2] >> k % 2 * 16));
                }
            for (u32 thread = 0; thread < 128; thread++) {
                if (all[thread]->b != all[0]->b) emu::fail("threads of a warpgroup name different tiles");
                for (u32 i = 0; i < 64; i++) {
                    const u32 row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
                    const u32 column = i / 4 * 8 + thread % 4 * 2 + i % 2;
                    float sum = all[thread]->c[i];
                    for (u32 k = 0; k < 16; k++) sum += left[row][k] * right[column][k];
                    all[thread]->c[i] = sum;
                }
            }
        });
    });
#else
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]),
          "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]),
          "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]),
          "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]), "+f"(c[32]),
          "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]), "+f"(c[40]),
          "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]), "+f"(c[48]),
          "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]), "+f"(c[56]),
          "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

}  // namespace ptx
