// Rotary embedding with the append to the cache, and attention of single tokens over the paged cache.
#include "attention.cuh"
#include "quantize.cuh"

// ---- rotation and append

struct AppendArgs {
    float* q;  // rotated in place
    const float* k;
    const float* v;
    Append to;
    u32 heads;  // of queries
};

constexpr u32 APPEND_THREADS = 128;
constexpr u32 MAX_HEAD_DIM = 256;

// An f16 as the CPU's Q8_0 rounds: quants by the scale before it is rounded, ties away from zero. 32 lanes hold a block.
DEVICE void quantize_block(float value, i8& quant, u16& scale) {
    u32 top = __float_as_uint(value) & 0x7fffffff;
#pragma unroll
    for (u32 by = WARP / 2; by > 0; by /= 2) {
        u32 other = __shfl_xor_sync(ALL_LANES, top, by);
        top = other > top ? other : top;
    }
    const float d = __fdiv_rn(__uint_as_float(top), 127.0f);
    float inverse = __fdiv_rn(1.0f, d);
    // A scale so small that it has no inverse; the block reads back as zeros.
    if ((__float_as_uint(inverse) & 0x7fffffff) == 0x7f800000) inverse = 0.0f;
    const float q = roundf(__fmul_rn(value, inverse));
    quant = q == q ? i8(q < -128.0f ? -128.0f : q > 127.0f ? 127.0f : q) : i8(0);
    scale = ptx::float_to_half(d);
}

// A head of queries, keys or values per block in x; a token per block in y.
template <bool EIGHT_BIT>
DEVICE void append(const AppendArgs& args) {
    SHARED(float, rotated, MAX_HEAD_DIM);
    ptx::let_next_kernel_start();
    ptx::wait_for_previous_kernel();
    const auto& [rotation, cache, places] = args.to;
    const u32 token = blockIdx.y, dim = cache.head_dim, kv_heads = cache.kv_heads;
    const bool is_query = blockIdx.x < args.heads;
    const bool is_key = !is_query && blockIdx.x < args.heads + kv_heads;
    const u32 head = is_query ? blockIdx.x : (blockIdx.x - args.heads) % kv_heads;
    const u32 position = places.positions[token];
    float* query = args.q + (size_t(token) * args.heads + head) * dim;
    const float* row = is_query ? query : (is_key ? args.k : args.v) + (size_t(token) * kv_heads + head) * dim;

    const u32 pairs = is_query || is_key ? rotation.pairs : 0;
    for (u32 i = threadIdx.x; i < pairs; i += blockDim.x) {
        u32 a, b;
        values_of_pair(rotation, i, a, b);
        float x = row[a], y = row[b];
        rotate(rotation, angle_of_pair(rotation, i, position), x, y);
        rotated[a] = x;
        rotated[b] = y;
    }
    for (u32 i = 2 * pairs + threadIdx.x; i < dim; i += blockDim.x) rotated[i] = row[i];
    __syncthreads();

    if (is_query) {
        for (u32 i = threadIdx.x; i < dim; i += blockDim.x) query[i] = rotated[i];
        return;
    }
    const u32 page = places.pages[places.tables[token] + position / PAGE], slot = position % PAGE;
    u8* side = is_key ? keys_of<EIGHT_BIT>(cache, page, head) : values_of<EIGHT_BIT>(cache, page, head);
    // Heads of an 8-bit cache are whole blocks of 32, so whole warps go round.
    for (u32 i = threadIdx.x; i < dim; i += blockDim.x) {
        if (EIGHT_BIT) {
            i8 quant;
            u16 scale;
            quantize_block(rotated[i], quant, scale);
            i8* quants = reinterpret_cast<i8*>(side);
            u16* scales = reinterpret_cast<u16*>(side + PAGE * dim);
            quants[is_key ? (i / 16 * PAGE + slot) * 16 + i % 16 : slot * dim + i] = quant;
            if (i % 32 == 0) scales[is_key ? i / 32 * PAGE + slot : slot * (dim / 32) + i / 32] = scale;
        } else {
            u16* halves = reinterpret_cast<u16*>(side);
            halves[is_key ? place_of_key(slot, i) : place_of_value(dim, slot, i)] = ptx::float_to_half(rotated[i]);
        }
    }
}

KERNEL(append_f16, AppendArgs, APPEND_THREADS) { append<false>(args); }
KERNEL(append_q8_0, AppendArgs, APPEND_THREADS) { append<true>(args); }

// ---- attention of single tokens
//
// A block takes one token, one key/value head with all queries that share it, and a run of pages (flash decoding: Dao et al.,
// 2023). Its warps take pages in turn, each with a running maximum and sum (Milakov and Gimelshein, 2018), and are merged at
// the end. Where there are several runs, each leaves its state in memory and counts itself, and the last one, whichever that is,
// merges all of them in their order, so that the order of blocks changes no bit.

// Where results go: as floats, or quantized.
struct Results {
    float* values;
    i8* quants;  // none: as floats
    BlockScale* scales;

    // Puts four values of a token's row, from `column` on. All lanes of the warp come here, also those whose values are not real.
    DEVICE void put(size_t token, u32 width, u32 column, bool real, const float (&v)[4]) const {
        const u32 blocks = width / BLOCK;
        if (quants) {
            quantize(v, column, real, quants + token * width, scales + token * blocks, blocks);
        } else if (real) {
            *reinterpret_cast<float4*>(values + token * width + column) = {v[0], v[1], v[2], v[3]};
        }
    }
};

// Four columns of a head's state: sums of weighted values, the largest score and the total of the weights.
struct State {
    float sums[4];
    float top, total;
};

// Floats of a state in memory: the columns, then the largest score and the total.
DEVICE u32 state_size(u32 head_dim) { return head_dim + 4; }

// Merges `count` states, of which `read(n, at)` gives four floats from `at` on.
template <class Read>
DEVICE State merge_states(u32 count, u32 head_dim, u32 column, Read read) {
    State out = {{0.0f, 0.0f, 0.0f, 0.0f}, LOWEST, 0.0f};
#pragma unroll 4
    for (u32 n = 0; n < count; n++) out.top = fmaxf(out.top, read(n, head_dim).x);
#pragma unroll 4
    for (u32 n = 0; n < count; n++) {
        const float4 end = read(n, head_dim), part = read(n, column);
        // What saw nothing has a total of zero.
        const float weight = ptx::exp2_fast(end.x - out.top);
        out.sums[0] += weight * part.x;
        out.sums[1] += weight * part.y;
        out.sums[2] += weight * part.z;
        out.sums[3] += weight * part.w;
        out.total += weight * end.y;
    }
    return out;
}

struct AttentionArgs {
    const float* q;
    Results out;
    float* partial;  // states: per token of the grid, query head and run
    u32* counters;   // a zero per token of the grid and key/value head
    Cache cache;
    Places places;
    const u32* rows;  // the tokens; none: all of the batch
    u32 heads;        // of queries
    u32 runs;         // into which a sequence's pages are cut
    u32 run_pages;    // pages of a run
    u32 window;       // only the last so many positions are seen
    float scale;
};

constexpr u32 ATTENTION_WARPS = 4;

// GROUP is how many queries share a head, rounded up. Heads have DIM values, or if ANY, at most so many, in eights.
template <u32 DIM, u32 GROUP, bool EIGHT_BIT, bool ANY>
DEVICE void attend(const AttentionArgs& args) {
    constexpr u32 LANES = DIM / 8;              // to a row of values, 8 to a lane; a power of two
    constexpr u32 ROWS = WARP / LANES;          // of values that a warp reads at once
    SHARED(float, queries, GROUP * DIM);
    SHARED(float, weights, ATTENTION_WARPS * GROUP * PAGE);
    SHARED(float, states, ATTENTION_WARPS * GROUP * (DIM + 4));
    SHARED(u32, before, 1);
    const u32 dim = ANY ? args.cache.head_dim : DIM, size = state_size(dim);
    ptx::let_next_kernel_start();
    ptx::wait_for_previous_kernel();

    const u32 kv_head = blockIdx.x, run = blockIdx.y, token = args.rows ? args.rows[blockIdx.z] : blockIdx.z;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u32 group = args.heads / args.cache.kv_heads;
    const u32 position = args.places.positions[token];
    const u32* pages = args.places.pages + args.places.tables[token];

    // Scores in powers of two.
    const float scale = args.scale * 1.44269504f;
    for (u32 i = threadIdx.x; i < GROUP * dim; i += blockDim.x) {
        const float* row = args.q + (size_t(token) * args.heads + kv_head * group) * dim;
        queries[i] = i < group * dim ? row[i] * scale : 0.0f;
    }
    __syncthreads();

    float maximum[GROUP], total[GROUP], sums[GROUP][8];
#pragma unroll
    for (u32 g = 0; g < GROUP; g++) {
        maximum[g] = LOWEST;
        total[g] = 0.0f;
#pragma unroll
        for (u32 i = 0; i < 8; i++) sums[g][i] = 0.0f;
    }
    float* mine = weights + warp * GROUP * PAGE;
    const u32 first_seen = position >= args.window ? position - args.window + 1 : 0;
    const u32 end = min(position / PAGE + 1, (run + 1) * args.run_pages);

    for (u32 page = max(run * args.run_pages, first_seen / PAGE) + warp; page < end; page += ATTENTION_WARPS) {
        const u32 place = pages[page];
        const u8* keys = keys_of<EIGHT_BIT>(args.cache, place, kv_head);
        const u8* values = values_of<EIGHT_BIT>(args.cache, place, kv_head);

        // A position per lane. What is not seen may never have been written, so it is left out and not multiplied by zero.
        float scores[GROUP];
#pragma unroll
        for (u32 g = 0; g < GROUP; g++) scores[g] = 0.0f;
#pragma unroll 4
        for (u32 piece = 0; piece < dim / 8; piece++) {
            float key[8];
            if (EIGHT_BIT) {
                const u16* scales = reinterpret_cast<const u16*>(keys + PAGE * dim);
                unpack_bytes(ptx::load8(keys + (piece / 2 * PAGE + lane) * 16 + piece % 2 * 8),
                             ptx::half_to_float(scales[piece / 4 * PAGE + lane]), key);
            } else {
                unpack_halves(ptx::load16(keys + (piece * PAGE + lane) * 16), key);
            }
#pragma unroll
            for (u32 g = 0; g < GROUP; g++) {
                const float4* q = reinterpret_cast<const float4*>(queries + g * dim + piece * 8);
                const float4 a = q[0], b = q[1];
                scores[g] += a.x * key[0] + a.y * key[1] + a.z * key[2] + a.w * key[3] +
                             (b.x * key[4] + b.y * key[5] + b.z * key[6] + b.w * key[7]);
            }
        }
        const u32 at = page * PAGE + lane;
        const bool seen = at <= position && at >= first_seen;
#pragma unroll
        for (u32 g = 0; g < GROUP; g++) {
            const float score = seen ? scores[g] : LOWEST;
            const float top = fmaxf(maximum[g], warp_max(score));
            const float shrink = ptx::exp2_fast(maximum[g] - top);
            const float weight = seen ? ptx::exp2_fast(score - top) : 0.0f;
            maximum[g] = top;
            total[g] = total[g] * shrink + weight;
#pragma unroll
            for (u32 i = 0; i < 8; i++) sums[g][i] *= shrink;
            mine[g * PAGE + lane] = weight;
        }
        __syncwarp();

        const u32 from = first_seen > page * PAGE ? first_seen - page * PAGE : 0;
        const u32 until = min(PAGE, position + 1 - page * PAGE);
        const u32 column = lane % LANES * 8;
        // Lanes beyond a short row have none.
        for (u32 slot = from + lane / LANES; slot < until && column < dim; slot += ROWS) {
            float value[8];
            if (EIGHT_BIT) {
                const u16* scales = reinterpret_cast<const u16*>(values + PAGE * dim);
                unpack_bytes(ptx::load8(values + slot * dim + column),
                             ptx::half_to_float(scales[slot * (dim / 32) + column / 32]), value);
            } else {
                unpack_halves(ptx::load16(values + (slot * dim + column) * 2), value);
            }
#pragma unroll
            for (u32 g = 0; g < GROUP; g++) {
                const float weight = mine[g * PAGE + slot];
#pragma unroll
                for (u32 i = 0; i < 8; i++) sums[g][i] += weight * value[i];
            }
        }
        // The next page's weights are written after its shuffles, so no lane is still at these.
        ptx::order_warp_memory();
    }

    // Lanes with the same columns, then warps.
#pragma unroll
    for (u32 g = 0; g < GROUP; g++) {
        total[g] = warp_sum(total[g]);
#pragma unroll
        for (u32 i = 0; i < 8; i++)
#pragma unroll
            for (u32 by = WARP / 2; by >= LANES; by /= 2) sums[g][i] += __shfl_xor_sync(ALL_LANES, sums[g][i], by);
        float* state = states + (warp * GROUP + g) * size;
        if (lane < dim / 8) {
#pragma unroll
            for (u32 i = 0; i < 8; i++) state[lane * 8 + i] = sums[g][i];
        }
        if (lane == 0) {
            state[dim] = maximum[g];
            state[dim + 1] = total[g];
        }
    }
    __syncthreads();

    // A thread has four columns at a time. Whole warps go round, since lanes quantize together.
    const u32 columns = group * dim, width = args.heads * dim;
    const size_t first_state = (size_t(blockIdx.z) * args.heads + kv_head * group) * args.runs;
    auto each = [&](auto work) {
        for (u32 start = warp * WARP * 4; start < columns; start += blockDim.x * 4) {
            const u32 i = start + lane * 4;
            const bool real = i < columns;
            work(real, i, real ? i / dim : 0, real ? i % dim : 0);
        }
    };
    auto put = [&](bool real, u32 i, const State& state) {
        float v[4];
#pragma unroll
        for (u32 j = 0; j < 4; j++) v[j] = state.sums[j] / state.total;
        args.out.put(token, width, kv_head * columns + i, real, v);
    };
    each([&](bool real, u32 i, u32 g, u32 column) {
        const State state = merge_states(ATTENTION_WARPS, dim, column, [&](u32 w, u32 at) {
            return *reinterpret_cast<const float4*>(states + (w * GROUP + g) * size + at);
        });
        if (args.runs == 1) return put(real, i, state);
        if (!real) return;
        float* left = args.partial + (first_state + g * args.runs + run) * size;
        *reinterpret_cast<float4*>(left + column) = {state.sums[0], state.sums[1], state.sums[2], state.sums[3]};
        if (column == 0) *reinterpret_cast<float4*>(left + dim) = {state.top, state.total, 0.0f, 0.0f};
    });
    if (args.runs == 1) return;

    ptx::publish();
    __syncthreads();
    if (threadIdx.x == 0) {
        u32* counter = args.counters + size_t(blockIdx.z) * args.cache.kv_heads + kv_head;
        *before = ptx::count_around(counter, args.runs - 1);
    }
    __syncthreads();
    if (*before != args.runs - 1) return;
    each([&](bool real, u32 i, u32 g, u32 column) {
        const float* of_head = args.partial + (first_state + g * args.runs) * size;
        put(real, i, merge_states(args.runs, dim, column, [&](u32 n, u32 at) {
            const uint4 raw = ptx::load_published16(of_head + size_t(n) * size + at);
            return float4{__uint_as_float(raw.x), __uint_as_float(raw.y), __uint_as_float(raw.z), __uint_as_float(raw.w)};
        }));
    });
}

#define ATTEND(name, dim, group, any)                                                                                  \
    KERNEL(attend_##name##_##group##_f16, AttentionArgs, ATTENTION_WARPS * WARP) {                                      \
        attend<dim, group, false, any>(args);                                                                          \
    }                                                                                                                  \
    KERNEL(attend_##name##_##group##_q8_0, AttentionArgs, ATTENTION_WARPS * WARP) { attend<dim, group, true, any>(args); }
#define ATTEND_GROUPS(name, dim, any) ATTEND(name, dim, 1, any) ATTEND(name, dim, 4, any) ATTEND(name, dim, 8, any)
// The lengths of most models, and those up to a limit.
ATTEND_GROUPS(64, 64, false)
ATTEND_GROUPS(128, 128, false)
ATTEND_GROUPS(any_128, 128, true)
ATTEND_GROUPS(any_256, 256, true)
