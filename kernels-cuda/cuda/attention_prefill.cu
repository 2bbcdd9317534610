// Attention of many tokens of one sequence: tiles of 64 rows in matrix products, with a running maximum and sum
// (FlashAttention-2: Dao, 2023, arXiv 2307.08691).
//
// A row of a tile is a query: all those that share a key/value head, of consecutive tokens. A warp owns 16 rows. The block goes
// along the positions in steps of two pages, with long heads of one: keys and values come to shared memory as f16, keys of the next step while the
// values of this one are multiplied, and values while the keys are. An 8-bit cache goes through registers, where a quant
// becomes quant * scale rounded to f16.
//
// Sums of a long head are more than a warp's registers hold: its columns are dealt out to two blocks, and both compute all scores.
//
// Queries (times the scale) and weights are rounded to f16; everything else is f32. Weights of positions that a row does not see
// are zeros. Where rows see different positions, values that are infinite or no number are kept out of the products, and rows
// that see them get them afterwards.
#include "attention.cuh"
#include "fragments.cuh"

// Tokens of one sequence that follow each other in the batch.
struct Segment {
    u32 first;
    u32 tokens;
};

struct PrefillArgs {
    const float* q;
    float* out;
    Cache cache;
    Places places;
    const Segment* segments;
    u32 count;   // of segments
    u32 heads;   // of queries
    u32 window;  // only the last so many positions are seen
    float scale;
};

constexpr u32 THREADS = 128;
constexpr u32 TILE_ROWS = 64;

// What a tile sees of its sequence.
struct View {
    Cache cache;
    const u32* pages;
    u32 head;
    u32 column;       // the first of the values that this block sums
    u32 first, last;  // positions that any of its rows sees

    DEVICE bool sees(u32 position) const { return position >= first && position <= last; }
    // The pages of a step; behind the last, it again.
    template <u32 COUNT>
    DEVICE void places(u32 page, u32 (&out)[COUNT]) const {
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) out[i] = pages[min(page + i, last / PAGE)];
    }
};

// What a block takes at a time, and where keys and values of a step lie in shared memory.
template <u32 DIM>
struct Step {
    static constexpr u32 PAGES = DIM <= 128 ? 2 : 1;
    static constexpr u32 POSITIONS = PAGES * PAGE;
    // Of the values.
    static constexpr u32 COLUMNS = DIM <= 128 ? DIM : DIM / 2;
    // As in a page of an f16 cache: the 8 positions that ldmatrix reads are one run of memory.
    static constexpr u32 KEY_BYTES = POSITIONS * DIM * 2;
    // The 16 bytes besides put the 8 rows that ldmatrix reads into different banks.
    static constexpr u32 VALUE_STRIDE = COLUMNS * 2 + 16;
    u8* keys;
    u8* values;
    DEVICE u8* key(u32 slot, u32 piece) const {
        return keys + slot / PAGE * (PAGE * DIM * 2) + (piece * PAGE + slot % PAGE) * 16;
    }
    DEVICE u8* value(u32 slot, u32 column) const { return values + slot * VALUE_STRIDE + column * 2; }
};

// The pieces of a step's keys or values, COLUMNS of each position, that a thread brings.
template <u32 PAGES, u32 COLUMNS, u32 PIECE_COLUMNS>
struct Pieces {
    static constexpr u32 OF_ROW = COLUMNS / PIECE_COLUMNS;
    static constexpr u32 COUNT = PAGES * PAGE * OF_ROW / THREADS;
    static_assert(COUNT > 0 && PAGES * PAGE * OF_ROW % THREADS == 0, "each thread has as many");
    // The page of a thread's i-th piece, which is `number` of all: known to the compiler where a page is whole rounds.
    DEVICE static u32 page(u32 i, u32 number) {
        return COUNT % PAGES == 0 ? i / (COUNT / PAGES) : number / (PAGE * OF_ROW);
    }
};

// An array that is indexed would not be registers.
template <u32 COUNT>
DEVICE u32 choose(const u32 (&places)[COUNT], u32 at) {
    return at == 0 ? places[0] : places[COUNT - 1];
}

// Brings keys or values from the cache in two halves, `begin` and `finish`, between which other work may be done. Positions
// that no row sees may never have been written; they become zeros.
template <u32 DIM, bool EIGHT_BIT>
struct Fetch;

template <u32 DIM>
struct Fetch<DIM, false> {
    static constexpr u32 PAGES = Step<DIM>::PAGES;
    using Keys = Pieces<PAGES, DIM, 8>;
    using Values = Pieces<PAGES, Step<DIM>::COLUMNS, 8>;

    DEVICE void begin_keys(const View& view, u32 page, const Step<DIM>& to) {
        u32 places[PAGES];
        view.places(page, places);
#pragma unroll
        for (u32 i = 0; i < Keys::COUNT; i++) {
            // A page is one run of memory: positions, then pieces of 8 columns.
            const u32 number = threadIdx.x + i * THREADS, piece = number / PAGE % Keys::OF_ROW;
            const u32 half = Keys::page(i, number), slot = half * PAGE + number % PAGE;
            const u8* keys = keys_of<false>(view.cache, choose(places, half), view.head);
            ptx::copy16_async(to.key(slot, piece), keys + (piece * PAGE + slot % PAGE) * 16, view.sees(page * PAGE + slot));
        }
        ptx::commit_copies();
    }
    DEVICE void finish_keys(const Step<DIM>&) { AWAIT_COPIES(0); }

    DEVICE void begin_values(const View& view, u32 page, const Step<DIM>& to) {
        u32 places[PAGES];
        view.places(page, places);
#pragma unroll
        for (u32 i = 0; i < Values::COUNT; i++) {
            const u32 number = threadIdx.x + i * THREADS, slot = number / Values::OF_ROW, piece = number % Values::OF_ROW;
            const u8* values = values_of<false>(view.cache, choose(places, Values::page(i, number)), view.head);
            const u32 from = (slot % PAGE * DIM + view.column + piece * 8) * 2;
            ptx::copy16_async(to.value(slot, piece * 8), values + from, view.sees(page * PAGE + slot));
        }
        ptx::commit_copies();
    }
    DEVICE void finish_values(const Step<DIM>&) { AWAIT_COPIES(0); }
};

// Four signed bytes times an f16, rounded to f16.
DEVICE uint2 scale_bytes(u32 bytes, u32 scale) {
    u32 low, high;
    ptx::widen_bytes(bytes, ptx::UNIT_1, ptx::OFFSET_1, low, high);
    return {ptx::multiply_halves(low, scale), ptx::multiply_halves(high, scale)};
}

template <u32 DIM>
struct Fetch<DIM, true> {
    static constexpr u32 PAGES = Step<DIM>::PAGES;
    using Keys = Pieces<PAGES, DIM, 16>;
    using Values = Pieces<PAGES, Step<DIM>::COLUMNS, 16>;
    uint4 quants[Keys::COUNT];
    u32 scales[Keys::COUNT];

    DEVICE void load(u32 i, const u8* side, u32 quants_at, u32 scale_at, bool real) {
        quants[i] = {0, 0, 0, 0};
        scales[i] = 0;
        if (!real) return;
        quants[i] = ptx::load16(side + quants_at);
        scales[i] = reinterpret_cast<const u16*>(side + PAGE * DIM)[scale_at];
    }
    // The i-th piece, as two of 8 columns.
    DEVICE void store(u32 i, u8* first, u8* second) {
        const u32 scale = scales[i] | scales[i] << 16;
        const uint2 a = scale_bytes(quants[i].x, scale), b = scale_bytes(quants[i].y, scale);
        const uint2 c = scale_bytes(quants[i].z, scale), d = scale_bytes(quants[i].w, scale);
        *reinterpret_cast<uint4*>(first) = {a.x, a.y, b.x, b.y};
        *reinterpret_cast<uint4*>(second) = {c.x, c.y, d.x, d.y};
    }

    DEVICE void begin_keys(const View& view, u32 page, const Step<DIM>&) {
        u32 places[PAGES];
        view.places(page, places);
#pragma unroll
        for (u32 i = 0; i < Keys::COUNT; i++) {
            const u32 number = threadIdx.x + i * THREADS, piece = number / PAGE % Keys::OF_ROW, slot = number % PAGE;
            const u32 half = Keys::page(i, number);
            const u8* keys = keys_of<true>(view.cache, choose(places, half), view.head);
            const bool real = view.sees((page + half) * PAGE + slot);
            load(i, keys, (piece * PAGE + slot) * 16, piece / 2 * PAGE + slot, real);
        }
    }
    DEVICE void finish_keys(const Step<DIM>& to) {
#pragma unroll
        for (u32 i = 0; i < Keys::COUNT; i++) {
            const u32 number = threadIdx.x + i * THREADS, piece = number / PAGE % Keys::OF_ROW;
            const u32 slot = Keys::page(i, number) * PAGE + number % PAGE;
            store(i, to.key(slot, piece * 2), to.key(slot, piece * 2 + 1));
        }
    }

    DEVICE void begin_values(const View& view, u32 page, const Step<DIM>&) {
        u32 places[PAGES];
        view.places(page, places);
#pragma unroll
        for (u32 i = 0; i < Values::COUNT; i++) {
            const u32 number = threadIdx.x + i * THREADS, slot = number / Values::OF_ROW, piece = number % Values::OF_ROW;
            const u8* values = values_of<true>(view.cache, choose(places, Values::page(i, number)), view.head);
            const u32 from = slot % PAGE * DIM + view.column + piece * 16;
            load(i, values, from, from / 32, view.sees(page * PAGE + slot));
        }
    }
    DEVICE void finish_values(const Step<DIM>& to) {
#pragma unroll
        for (u32 i = 0; i < Values::COUNT; i++) {
            const u32 number = threadIdx.x + i * THREADS, slot = number / Values::OF_ROW, piece = number % Values::OF_ROW;
            store(i, to.value(slot, piece * 16), to.value(slot, piece * 16 + 8));
        }
    }
};

// Makes zeros of those of a word's two f16 that are infinite or no numbers. Returns whether there were any.
DEVICE u32 keep_finite(u32& halves) {
    // An exponent of ones carries into the sign's place.
    const u32 wrong = ((halves & 0x7c007c00) + 0x04000400) & 0x80008000;
    halves &= ~((wrong >> 15) * 0xffff);
    return wrong;
}

// A tile per block in x, the last ones first, which see the most; a key/value head in y; a part of the columns in z.
template <u32 DIM, bool EIGHT_BIT>
DEVICE void prefill(const PrefillArgs& args) {
    SHARED(u8, keys, Step<DIM>::KEY_BYTES);
    SHARED(u8, values, Step<DIM>::POSITIONS * Step<DIM>::VALUE_STRIDE);
    constexpr u32 STEP = Step<DIM>::POSITIONS, STEP_PAGES = Step<DIM>::PAGES, COLUMNS = Step<DIM>::COLUMNS;
    const Step<DIM> memory{keys, values};
    ptx::let_next_kernel_start();
    ptx::wait_for_previous_kernel();
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, kv_head = blockIdx.y;
    const u32 group = args.heads / args.cache.kv_heads, tile_tokens = TILE_ROWS / group;

    // The tile's tokens.
    u32 tile = gridDim.x - 1 - blockIdx.x;
    Segment segment = args.segments[0];
    for (u32 next = 1; next < args.count; next++) {
        const u32 tiles = (segment.tokens + tile_tokens - 1) / tile_tokens;
        if (tile < tiles) break;
        tile -= tiles;
        segment = args.segments[next];
    }
    const u32 first_token = segment.first + tile * tile_tokens;
    const u32 tokens = min(tile_tokens, segment.tokens - tile * tile_tokens);
    const u32 start = args.places.positions[first_token];
    const u32* pages = args.places.pages + args.places.tables[first_token];
    View view{args.cache, pages, kv_head, blockIdx.z * COLUMNS, 0, start + tokens - 1};
    if (start >= args.window) view.first = start - args.window + 1;

    // This thread's two rows. Those behind the last are copies of it, and their results are dropped.
    u32 position[2];
    size_t row[2];
    u32 q[DIM / 16][4];
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        const u32 number = min(warp * 16 + r * 8 + lane / 4, tokens * group - 1);
        position[r] = start + number / group;
        row[r] = (size_t(first_token + number / group) * args.heads + kv_head * group + number % group) * DIM;
        // Scores in powers of two.
        const float scale = args.scale * 1.44269504f;
#pragma unroll
        for (u32 k = 0; k < DIM / 8; k++) {
            const uint2 pair = ptx::load8(args.q + row[r] + k * 8 + lane % 4 * 2);
            const float a = __uint_as_float(pair.x) * scale, b = __uint_as_float(pair.y) * scale;
            q[k / 2][k % 2 * 2 + r] = ptx::pack_halves(within_f16(a), within_f16(b));
        }
    }

    float maximum[2] = {LOWEST, LOWEST}, total[2] = {0.0f, 0.0f}, sums[COLUMNS / 8][4];
#pragma unroll
    for (u32 n = 0; n < COLUMNS / 8; n++)
#pragma unroll
        for (u32 e = 0; e < 4; e++) sums[n][e] = 0.0f;

    // The first position that the tile's last token sees: before it, some rows see less than others.
    const u32 all_see = view.last >= args.window ? view.last - args.window + 1 : 0;
    const u32 end = view.last / PAGE + 1;
    Fetch<DIM, EIGHT_BIT> fetch;
    fetch.begin_keys(view, view.first / PAGE, memory);
    for (u32 page = view.first / PAGE; page < end; page += STEP_PAGES) {
        fetch.finish_keys(memory);
        __syncthreads();
        fetch.begin_values(view, page, memory);

        float scores[STEP / 8][4];
#pragma unroll
        for (u32 n = 0; n < STEP / 8; n++)
#pragma unroll
            for (u32 e = 0; e < 4; e++) scores[n][e] = 0.0f;
#pragma unroll
        for (u32 k = 0; k < DIM / 16; k++)
#pragma unroll
            for (u32 n = 0; n < STEP / 16; n++) {
                u32 matrices[4];
                ptx::load_matrices(matrices, memory.key(n * 16 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
                const u32 first[2] = {matrices[0], matrices[1]}, second[2] = {matrices[2], matrices[3]};
                ptx::mma_f16(scores[2 * n], q[k], first);
                ptx::mma_f16(scores[2 * n + 1], q[k], second);
            }
        fetch.finish_values(memory);
        __syncthreads();
        if (page + STEP_PAGES < end) fetch.begin_keys(view, page + STEP_PAGES, memory);

        // Whether there may be rows that do not see all of the step's positions.
        const bool mixed = page * PAGE + STEP - 1 > start || page * PAGE < all_see;
        if (mixed) {
#pragma unroll
            for (u32 n = 0; n < STEP / 8; n++)
#pragma unroll
                for (u32 e = 0; e < 4; e++) {
                    const u32 at = page * PAGE + n * 8 + lane % 4 * 2 + e % 2, mine = position[e / 2];
                    // Without an overflow: `mine - at` is the distance, if `at` is not ahead.
                    if (at > mine || mine - at >= args.window) scores[n][e] = LOWEST;
                }
        }
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            float top = maximum[r];
#pragma unroll
            for (u32 n = 0; n < STEP / 8; n++) top = fmaxf(top, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
            // A row that has seen nothing yet keeps weights of zero.
            const float zero = top == LOWEST ? 0.0f : top;
            const float shrink = ptx::exp2_fast(maximum[r] - zero);
            maximum[r] = top;
            total[r] *= shrink;
#pragma unroll
            for (u32 n = 0; n < STEP / 8; n++)
#pragma unroll
                for (u32 e = 2 * r; e < 2 * r + 2; e++) {
                    scores[n][e] = ptx::exp2_fast(scores[n][e] - zero);
                    total[r] += scores[n][e];
                }
#pragma unroll
            for (u32 n = 0; n < COLUMNS / 8; n++) {
                sums[n][2 * r] *= shrink;
                sums[n][2 * r + 1] *= shrink;
            }
        }
#pragma unroll
        for (u32 k = 0; k < STEP / 16; k++) {
            // Results of the one product are laid out as the next one's left side.
            const u32 weights[4] = {ptx::pack_halves(scores[2 * k][0], scores[2 * k][1]),
                                    ptx::pack_halves(scores[2 * k][2], scores[2 * k][3]),
                                    ptx::pack_halves(scores[2 * k + 1][0], scores[2 * k + 1][1]),
                                    ptx::pack_halves(scores[2 * k + 1][2], scores[2 * k + 1][3])};
            u32 wrong = 0;
#pragma unroll
            for (u32 n = 0; n < COLUMNS / 16; n++) {
                u32 matrices[4];
                ptx::load_matrices_transposed(matrices, memory.value(k * 16 + lane % 16, n * 16 + lane / 16 * 8));
                if (mixed) {
#pragma unroll
                    for (u32 i = 0; i < 4; i++) wrong |= keep_finite(matrices[i]);
                }
                const u32 first[2] = {matrices[0], matrices[1]}, second[2] = {matrices[2], matrices[3]};
                ptx::mma_f16(sums[2 * n], weights, first);
                ptx::mma_f16(sums[2 * n + 1], weights, second);
            }
            if (!mixed || !__ballot_sync(ALL_LANES, wrong != 0)) continue;
            // A weight is above zero, so a value of this kind is its own share.
#pragma unroll 1
            for (u32 slot = k * 16; slot < k * 16 + 16; slot++) {
                const u32 at = page * PAGE + slot;
#pragma unroll
                for (u32 n = 0; n < COLUMNS / 8; n++) {
                    const u32 pair = *reinterpret_cast<const u32*>(memory.value(slot, n * 8 + lane % 4 * 2));
                    u32 finite = pair;
                    if (!keep_finite(finite)) continue;
#pragma unroll
                    for (u32 e = 0; e < 4; e++) {
                        const u32 mine = position[e / 2];
                        const bool sees = at <= mine && mine - at < args.window;
                        const u32 half = pair >> e % 2 * 16 & 0xffff;
                        if (sees && (half & 0x7c00) == 0x7c00) sums[n][e] += ptx::half_to_float(u16(half));
                    }
                }
            }
        }
    }

#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        total[r] += __shfl_xor_sync(ALL_LANES, total[r], 1);
        total[r] += __shfl_xor_sync(ALL_LANES, total[r], 2);
        if (warp * 16 + r * 8 + lane / 4 >= tokens * group) continue;
        const float share = 1.0f / total[r];
#pragma unroll
        for (u32 n = 0; n < COLUMNS / 8; n++) {
            float2* out = reinterpret_cast<float2*>(args.out + row[r] + view.column + n * 8 + lane % 4 * 2);
            *out = {sums[n][2 * r] * share, sums[n][2 * r + 1] * share};
        }
    }
}

#define PREFILL_F16(dim) KERNEL(prefill_##dim##_f16, PrefillArgs, THREADS) { prefill<dim, false>(args); }
#define PREFILL(dim)                                                                                                   \
    PREFILL_F16(dim)                                                                                                   \
    KERNEL(prefill_##dim##_q8_0, PrefillArgs, THREADS) { prefill<dim, true>(args); }
PREFILL(32)
PREFILL(64)
// An 8-bit cache has blocks of 32 values.
PREFILL_F16(80)
PREFILL(96)
PREFILL(128)
PREFILL(256)
