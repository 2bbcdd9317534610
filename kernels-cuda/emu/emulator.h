// CUDA's execution model on a CPU, for tests: what the kernels' common header needs in place of the compiler's builtins.
//
// Every CUDA thread is a fiber. As many blocks run at a time as there are cores (eight at most), on a thread each; the fibers of
// a block run in turn, each until it waits for others. Which fiber runs next is the schedule, a parameter of the test, so that an
// order that hides a missing barrier does not hide it twice; it depends on nothing that other blocks do. Shared memory starts as
// garbage, accesses behind an array are found when the block ends, and a block in which nobody can go on is reported, as is a
// warp operation that names a lane that has returned. Bulk copies run beside the fibers: each is over at some time of its own,
// and until then its place is garbage. Where a synchronisation is left out, blocks run one after the other, so that whether that
// is noticed is no matter of chance.
//
// Not modelled: races of accesses between two barriers in one warp, bank conflicts, memory order, proxies. One launch runs at a
// time; the stand-in driver sees to that.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

namespace emu {

constexpr unsigned WARP = 32;
constexpr size_t STACK = 128 << 10;
constexpr size_t MAX_SHARED = 228 << 10;
constexpr size_t GUARD = 64;
// As a float this is a NaN, as an integer -1.
constexpr unsigned char POISON = 0xff;
constexpr unsigned char GUARD_BYTE = 0x5a;

// ---- what tests choose and read

// 0 runs fibers forwards, 1 backwards, other numbers are seeds of a random order. From 3 on, with odd numbers a warp runs as
// far as it can before another does; otherwise all go on at the same pace, and those that are far behind meet nobody.
inline unsigned schedule = 0;
// Asynchronous copies and products are over when they begin; otherwise they begin when they are awaited. A device may do either:
// early ones show what is overwritten while others still read it, late ones what is read before it is there.
inline bool early = false;
// A synchronisation that is left out, by its number in `sync_sites`; 0 leaves none out.
inline unsigned dropped_site = 0;
// The synchronisations that launches have met: place in the source and kind.
inline std::set<unsigned> sync_sites;
// Why the last launch failed.
inline std::string failure;

enum class State { ready, barrier, collective, polling, done };

struct Fiber {
    dim3 thread;
    unsigned index = 0, lane = 0, warp = 0;
    State state = State::ready;
    // What it waits in: a barrier's number and size, or a collective's mask and kind.
    unsigned barrier = 0, barrier_size = 0, mask = 0, kind = 0;
    std::function<bool()> ready_when;
    std::vector<std::function<void()>> copies;  // asynchronous copies that were not awaited, oldest first
    std::vector<size_t> groups;                 // how many of them each committed group holds
    size_t ungrouped = 0;
    std::vector<std::function<void()>> products;  // the same of asynchronous products of a warpgroup
    std::vector<size_t> product_groups;
    size_t ungrouped_products = 0;
    char* stack = nullptr;
#if defined(__x86_64__)
    void* at = nullptr;
#else
    ucontext_t at;
#endif
};

// Puts off what is asynchronous until its group is awaited.
inline void put_off(std::vector<std::function<void()>>& work, size_t& ungrouped, std::function<void()> one) {
    if (early) one(), one = [] {};
    work.push_back(std::move(one));
    ungrouped++;
}

// Does the work of the oldest committed groups, until so many are left.
inline void finish_groups(std::vector<std::function<void()>>& work, std::vector<size_t>& groups, size_t left) {
    while (groups.size() > left) {
        const size_t count = groups.front();
        for (size_t i = 0; i < count; i++) work[i]();
        work.erase(work.begin(), work.begin() + static_cast<long>(count));
        groups.erase(groups.begin());
    }
}

// A tensor map as the stand-in for the driver writes it into the 128 bytes of a CUtensorMap: a matrix in global memory, of which
// bulk copies bring boxes, with the 128-byte swizzle.
struct TensorMap {
    static constexpr uint64_t TAG = 0x70616d20736f7221;
    uint64_t tag;
    const unsigned char* base;
    // Elements, rows, and bytes from one row to the next.
    uint64_t columns, rows, row_bytes;
    uint32_t box_columns, box_rows, element_bytes;
    unsigned char unused[76];
};
static_assert(sizeof(TensorMap) == 128, "a CUtensorMap has 128 bytes");

constexpr size_t PAYLOAD = 64;

struct Warp {
    alignas(16) unsigned char in[WARP][PAYLOAD], out[WARP][PAYLOAD];
    unsigned arrived = 0, exited = 0;
    // Lanes that the block has.
    unsigned there = 0;
};

// Four warps that compute products together.
constexpr unsigned TEAM = 128;

struct Team {
    const void* in[TEAM];
    unsigned arrived = 0, generation = 0;
};

struct SharedArray {
    const void* key;
    unsigned char* start;
    size_t bytes;
};

// Synchronisations are told apart by kind and line.
constexpr unsigned SYNC_KINDS = 8, SYNC_LINES = 4096;

// Most blocks that run at a time, each of which may have a thousand stacks.
constexpr unsigned MOST_CORES = 8;

// What runs one block after the other.
struct Block {
    dim3 grid, size, index;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<Team> teams;
    std::vector<unsigned char> memory;
    std::vector<SharedArray> arrays;
    size_t used = 0, dynamic_bytes = 0, shared_bytes = 0, most_shared = 0, alive = 0;
    // Threads that published what they wrote, for the block's next count.
    size_t published = 0;
    // Bulk copies under way. No thread waits for them; barriers count their bytes when they are there.
    std::vector<std::function<void()>> bulk_copies;
    std::function<void()> body;
    Fiber* current = nullptr;
    std::vector<std::vector<char>> stacks;
    uint64_t random_state = 1;
    // Synchronisations that this launch has met here, and where they are marked as such.
    std::vector<unsigned> sites;
    bool met[SYNC_KINDS][SYNC_LINES] = {};
    bool failed = false;
    // Why.
    std::string failure;
#if defined(__x86_64__)
    void* scheduler = nullptr;
#else
    ucontext_t scheduler;
#endif
};
// The block that this thread runs.
inline thread_local Block* block = nullptr;

// ---- switching between fibers

#if defined(__x86_64__)
// Saves the registers that a call keeps and the stack, and goes on where `to` was saved (System V ABI, section 3.2.1). One of
// the translation units defines it.
#ifdef RUSTAI_EMULATOR_MAIN
asm(R"(
.text
.hidden rustai_emu_switch
.globl rustai_emu_switch
.type rustai_emu_switch, @function
rustai_emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size rustai_emu_switch, .-rustai_emu_switch
)");
#endif
extern "C" __attribute__((visibility("hidden"))) void rustai_emu_switch(void** from, void* to);

inline void resume(Fiber& fiber) { rustai_emu_switch(&block->scheduler, fiber.at); }
inline void yield() { rustai_emu_switch(&block->current->at, block->scheduler); }
#else
inline void resume(Fiber& fiber) { swapcontext(&block->scheduler, &fiber.at); }
inline void yield() { swapcontext(&block->current->at, &block->scheduler); }
#endif

// Gives up the launch. A fiber that calls this never goes on.
inline void fail(const std::string& what) {
    if (!block->failed) {
        block->failure = what + " (block " + std::to_string(block->index.x) + "," + std::to_string(block->index.y) + "," +
                  std::to_string(block->index.z);
        if (block->current) block->failure += ", thread " + std::to_string(block->current->index);
        block->failure += ")";
    }
    block->failed = true;
    if (block->current) {
        block->current->state = State::done;
        for (;;) yield();
    }
}

inline void fiber_main() {
    block->body();
    Fiber& me = *block->current;
    if (!me.copies.empty()) fail("a thread returned with asynchronous copies under way");
    if (!me.products.empty()) fail("a thread returned with asynchronous products under way");
    me.state = State::done;
    block->alive--;
    block->warps[me.warp].exited |= 1u << me.lane;
    for (;;) yield();
}

inline void prepare(Fiber& fiber) {
    auto& stacks = block->stacks;
    if (fiber.index >= stacks.size()) stacks.resize(fiber.index + 1);
    if (stacks[fiber.index].empty()) stacks[fiber.index].resize(STACK);
    fiber.stack = stacks[fiber.index].data();
#if defined(__SANITIZE_ADDRESS__)
    // The fiber before never returned from the functions that it was in, so their frames still count as out of reach.
    ASAN_UNPOISON_MEMORY_REGION(fiber.stack, STACK);
#endif
    fiber.state = State::ready;
    fiber.copies.clear();
    fiber.groups.clear();
    fiber.ungrouped = 0;
    fiber.products.clear();
    fiber.product_groups.clear();
    fiber.ungrouped_products = 0;
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(fiber.stack) + STACK) & ~uintptr_t(15));
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(fiber_main);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.at = top;
#else
    getcontext(&fiber.at);
    fiber.at.uc_stack.ss_sp = fiber.stack;
    fiber.at.uc_stack.ss_size = STACK;
    fiber.at.uc_link = nullptr;
    makecontext(&fiber.at, fiber_main, 0);
#endif
}

// ---- shared memory

inline unsigned char* reserve_shared(const void* key, size_t bytes) {
    size_t start = (block->used + 1023) / 1024 * 1024;
    block->shared_bytes += (bytes + 15) / 16 * 16;
    if (block->shared_bytes > block->most_shared) fail("more shared memory than the device gives a block");
    if (start + bytes + GUARD > block->memory.size()) fail("more shared memory than any device has");
    unsigned char* at = block->memory.data() + start;
    block->used = start + bytes + GUARD;
    memset(at, POISON, bytes);
    memset(at + bytes, GUARD_BYTE, GUARD);
    block->arrays.push_back({key, at, bytes});
    return at;
}

// The block's array that belongs to a declaration; the first thread that comes by makes it.
inline void* shared(const void* key, size_t bytes) {
    for (auto& array : block->arrays)
        if (array.key == key) return array.start;
    return reserve_shared(key, bytes);
}

inline const char dynamic_key = 0;
inline void* dynamic_shared() { return shared(&dynamic_key, block->dynamic_bytes); }

// Whether all of it is in one of the block's arrays.
inline bool is_shared(const void* start, size_t bytes) {
    auto at = static_cast<const unsigned char*>(start);
    for (auto& array : block->arrays)
        if (at >= array.start && at + bytes <= array.start + array.bytes) return true;
    return false;
}

inline void check_guards() {
    for (auto& array : block->arrays)
        for (size_t i = 0; i < GUARD; i++)
            if (array.start[array.bytes + i] != GUARD_BYTE) return fail("a write behind the end of shared memory");
}

// ---- waiting for others

// Notes a synchronisation; true if it is to be left out. Kinds tell apart what shares a line.
inline bool drops(unsigned kind, unsigned line) {
    if (kind >= SYNC_KINDS || line >= SYNC_LINES) fail("a synchronisation of a kind or line that the emulator has no room for");
    const unsigned site = kind << 24 | line;
    bool& met = block->met[kind][line];
    if (!met) met = true, block->sites.push_back(site);
    return site == dropped_site;
}

inline void barrier(unsigned id, unsigned threads, unsigned line) {
    if (drops(1, line)) return;
    Fiber& me = *block->current;
    me.state = State::barrier;
    me.barrier = id;
    me.barrier_size = threads;
    yield();
}

// All lanes of `mask` bring a value; when the last has come, `compute` makes everyone's result.
template <class In, class Out, class Compute>
Out collective(unsigned kind, unsigned mask, const In& in, Compute compute) {
    static_assert(sizeof(In) <= PAYLOAD && sizeof(Out) <= PAYLOAD, "enlarge the payload");
    Fiber& me = *block->current;
    Warp& warp = block->warps[me.warp];
    if (!(mask >> me.lane & 1)) fail("a lane calls a warp operation without itself in the mask");
    if (mask & warp.exited) fail("a warp operation names a lane that has returned");
    if (mask & ~warp.there) fail("a warp operation names a lane that the block does not have");
    memcpy(warp.in[me.lane], &in, sizeof(In));
    me.mask = mask;
    me.kind = kind;
    warp.arrived |= 1u << me.lane;
    Fiber* lanes = &block->fibers[me.warp * WARP];
    const auto differs = [&](unsigned lane) { return lanes[lane].mask != mask || lanes[lane].kind != kind; };
    // At the latest the last to come sees who does not belong to it; those before look at one other, to be quick.
    if (differs(static_cast<unsigned>(__builtin_ctz(warp.arrived & mask)))) fail("lanes of a warp meet in different operations");
    if ((warp.arrived & mask) == mask) {
        for (unsigned lane = 0; lane < WARP; lane++)
            if ((mask >> lane & 1) && differs(lane)) fail("lanes of a warp meet in different operations");
        const In* all[WARP];
        Out* results[WARP];
        for (unsigned lane = 0; lane < WARP; lane++) {
            all[lane] = reinterpret_cast<const In*>(warp.in[lane]);
            results[lane] = reinterpret_cast<Out*>(warp.out[lane]);
        }
        compute(all, results);
        warp.arrived &= ~mask;
        for (unsigned lane = 0; lane < WARP; lane++)
            if (mask >> lane & 1) lanes[lane].state = State::ready;
    } else {
        me.state = State::collective;
        yield();
    }
    Out out;
    memcpy(&out, warp.out[me.lane], sizeof(Out));
    return out;
}

inline void warp_barrier(unsigned mask, unsigned line) {
    if (drops(2, line)) return;
    collective<char, char>(1, mask, 0, [](auto&, auto&) {});
}

// Goes on when `ready` holds.
inline void poll(std::function<bool()> ready) {
    Fiber& me = *block->current;
    if (ready()) return;
    me.ready_when = std::move(ready);
    me.state = State::polling;
    yield();
}

// All threads of a warpgroup bring a request; when the last has come, `compute` serves them all.
template <class In, class Compute>
void together(const In& in, Compute compute) {
    const unsigned index = block->current->index;
    Team& team = block->teams[index / TEAM];
    team.in[index % TEAM] = &in;
    if (++team.arrived < TEAM) {
        const unsigned generation = team.generation;
        poll([&team, generation] { return team.generation != generation; });
        return;
    }
    compute(reinterpret_cast<const In* const(&)[TEAM]>(team.in));
    team.arrived = 0;
    team.generation++;
}

// ---- running a block

inline unsigned random(unsigned below) {
    uint64_t& state = block->random_state;
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<unsigned>(state >> 33) % below;
}

// Begins a bulk copy, which is over when it begins, or at some time later.
inline void begin_bulk_copy(std::function<void()> copy) {
    if (early) return copy();
    block->bulk_copies.push_back(std::move(copy));
}

// Ends one of the bulk copies under way, which a device may do in any order; false if there is none.
inline bool end_bulk_copy() {
    auto& all = block->bulk_copies;
    if (all.empty()) return false;
    const unsigned count = static_cast<unsigned>(all.size());
    const unsigned which = schedule == 0 ? 0 : schedule == 1 ? count - 1 : random(count);
    const auto copy = std::move(all[which]);
    all.erase(all.begin() + which);
    copy();
    return true;
}

inline void order(std::vector<unsigned>& list) {
    for (unsigned i = 0; i < list.size(); i++) list[i] = i;
    if (schedule == 1) std::reverse(list.begin(), list.end());
    if (schedule > 1)
        for (unsigned i = list.size(); i > 1; i--) std::swap(list[i - 1], list[random(i)]);
}

// Lets those through whose barrier is complete; false if there are none.
inline bool open_barriers() {
    bool opened = false;
    for (unsigned id = 0; id < 16; id++) {
        size_t waiting = 0, size = 0;
        for (auto& fiber : block->fibers)
            if (fiber.state == State::barrier && fiber.barrier == id) waiting++, size = fiber.barrier_size;
        if (waiting == 0 || waiting < size) continue;
        for (auto& fiber : block->fibers)
            if (fiber.state == State::barrier && fiber.barrier == id) fiber.state = State::ready;
        opened = true;
    }
    return opened;
}

inline void run_block() {
    block->arrays.clear();
    block->used = block->shared_bytes = block->published = 0;
    block->bulk_copies.clear();
    block->alive = block->fibers.size();
    for (auto& warp : block->warps) warp.arrived = warp.exited = 0;
    block->teams.assign((block->fibers.size() + TEAM - 1) / TEAM, Team());
    for (auto& fiber : block->fibers) prepare(fiber);
    std::vector<unsigned> warps(block->warps.size()), lanes(WARP);
    while (block->alive && !block->failed) {
        bool progress = false;
        order(warps);
        for (unsigned warp : warps) {
            bool moved;
            do {
                moved = false;
                order(lanes);
                for (unsigned lane : lanes) {
                    if (warp * WARP + lane >= block->fibers.size()) continue;
                    Fiber& fiber = block->fibers[warp * WARP + lane];
                    if (fiber.state == State::polling && fiber.ready_when()) fiber.state = State::ready;
                    if (fiber.state != State::ready) continue;
                    block->current = &fiber;
                    resume(fiber);
                    block->current = nullptr;
                    moved = true;
                    if (block->failed) return;
                }
                progress |= moved;
            } while (moved && schedule > 2 && schedule % 2);
        }
        // At the latest when nobody can go on without them.
        if (schedule > 1 && !block->bulk_copies.empty() && random(2)) progress |= end_bulk_copy();
        if (block->alive && !progress && !open_barriers() && !end_bulk_copy()) fail("deadlock: every thread waits for another");
    }
    if (!block->failed && !block->bulk_copies.empty()) fail("a block ended with bulk copies under way");
    check_guards();
}

// ---- running a launch

// Threads that wait for work: as many as there are cores, with the caller's. They never end, so the one object is never destroyed.
class Cores {
public:
    static Cores& all() {
        static Cores& cores = *new Cores;
        return cores;
    }

    // Calls `work` with each number below `count`, 0 on this thread, and returns when all calls have returned.
    void run(unsigned count, const std::function<void(unsigned)>& work) {
        {
            std::lock_guard<std::mutex> guard(lock);
            while (started + 1 < count) {
                started++;
                std::thread([this, number = started, seen = round] { serve(number, seen); }).detach();
            }
            job = &work, wanted = count, running = count - 1, round++;
        }
        begun.notify_all();
        work(0);
        std::unique_lock<std::mutex> guard(lock);
        ended.wait(guard, [this] { return running == 0; });
    }

private:
    void serve(unsigned number, uint64_t seen) {
        std::unique_lock<std::mutex> guard(lock);
        for (;;) {
            begun.wait(guard, [&] { return round != seen; });
            seen = round;
            if (number >= wanted) continue;
            const auto& work = *job;
            guard.unlock();
            work(number);
            guard.lock();
            if (--running == 0) ended.notify_one();
        }
    }

    std::mutex lock;
    std::condition_variable begun, ended;
    const std::function<void(unsigned)>* job = nullptr;
    unsigned started = 0, wanted = 0, running = 0;
    uint64_t round = 0;
};

using Kernel = void (*)(const void*);

// Runs a kernel whose blocks have at most `most_shared` bytes of shared memory, arrays and dynamic; false if it failed, and then
// `failure` says why: what the first of the blocks that failed says, in the order in which they begin.
inline bool launch(Kernel kernel, const void* args, dim3 grid, unsigned threads, size_t shared_bytes, size_t most_shared) {
    static std::vector<std::unique_ptr<Block>> all;
    const unsigned count = grid.x * grid.y * grid.z;
    const unsigned cores = dropped_site ? 1 : std::min({count, MOST_CORES, std::max(1u, std::thread::hardware_concurrency())});
    while (all.size() < cores) all.push_back(std::make_unique<Block>());
    block = all[0].get();
    block->random_state = schedule;
    std::vector<unsigned> blocks(count);
    order(blocks);

    std::atomic<unsigned> next{0}, failed_at{count};
    std::mutex reporting;
    const auto work = [&](unsigned core) {
        block = all[core].get();
        block->memory.resize(MAX_SHARED + (64 << 10));
        block->grid = grid;
        block->size = {threads, 1, 1};
        block->dynamic_bytes = shared_bytes;
        block->most_shared = most_shared;
        block->failed = false;
        block->body = [=] { kernel(args); };
        block->fibers.resize(threads);
        block->warps.assign((threads + WARP - 1) / WARP, Warp());
        for (unsigned i = 0; i < threads; i++) {
            Fiber& fiber = block->fibers[i];
            fiber.index = i;
            fiber.lane = i % WARP;
            fiber.warp = i / WARP;
            fiber.thread = {i, 0, 0};
            block->warps[fiber.warp].there |= 1u << fiber.lane;
        }
        // Blocks that began before the one that failed still run: one of them may fail, too.
        for (unsigned at = next++; at < failed_at; at = next++) {
            const unsigned b = blocks[at];
            block->index = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
            block->random_state = schedule + b * uint64_t{0x9e3779b97f4a7c15};
            run_block();
            if (!block->failed) continue;
            std::lock_guard<std::mutex> guard(reporting);
            if (at < failed_at) failed_at = at, failure = block->failure;
            break;
        }
    };
    if (cores == 1)
        work(0);
    else
        Cores::all().run(cores, work);
    for (unsigned core = 0; core < cores; core++) {
        for (unsigned site : all[core]->sites) sync_sites.insert(site), all[core]->met[site >> 24][site & 0xffffff] = false;
        all[core]->sites.clear();
    }
    return failed_at == count;
}

// ---- the kernels that were compiled in

struct Registered {
    const char* name;
    Kernel kernel;
    size_t args_bytes;
    unsigned max_threads;
};
inline std::vector<Registered>& kernels() {
    static std::vector<Registered> list;
    return list;
}
struct Register {
    Register(const char* name, Kernel kernel, size_t args_bytes, unsigned max_threads) {
        kernels().push_back({name, kernel, args_bytes, max_threads});
    }
};

}  // namespace emu

// ---- the names that CUDA C++ gives these things

#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define threadIdx (emu::block->current->thread)
#define blockIdx (emu::block->index)
#define blockDim (emu::block->size)
#define gridDim (emu::block->grid)
#define __syncthreads() emu::barrier(0, blockDim.x, __LINE__)
#define __syncwarp() emu::warp_barrier(~0u, __LINE__)

template <class T>
T emu_shuffle(unsigned kind, unsigned mask, T value, unsigned source) {
    struct In {
        T value;
        unsigned source;
    };
    return emu::collective<In, T>(kind, mask, In{value, source}, [mask](auto& in, auto& out) {
        for (unsigned lane = 0; lane < emu::WARP; lane++)
            if (mask >> lane & 1) *out[lane] = in[in[lane]->source % emu::WARP]->value;
    });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned by) {
    return emu_shuffle(2, mask, value, emu::block->current->lane ^ by);
}
template <class T>
T __shfl_sync(unsigned mask, T value, unsigned source) {
    return emu_shuffle(3, mask, value, source);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return emu::collective<int, unsigned>(5, mask, predicate, [mask](auto& in, auto& out) {
        unsigned votes = 0;
        for (unsigned lane = 0; lane < emu::WARP; lane++)
            if ((mask >> lane & 1) && *in[lane]) votes |= 1u << lane;
        for (unsigned lane = 0; lane < emu::WARP; lane++) *out[lane] = votes;
    });
}
using std::max;
using std::min;
inline int __float_as_int(float x) { int y; memcpy(&y, &x, 4); return y; }
inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline unsigned atomicAdd(unsigned* p, unsigned v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
