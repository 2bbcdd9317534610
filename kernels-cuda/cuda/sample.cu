// Choosing a token from logits: the largest, or one of the k largest by chance.
#include "common.cuh"

constexpr u32 SAMPLE_THREADS = 1024;
constexpr u32 MOST_CANDIDATES = 1024;
constexpr u32 BUCKETS = 256;

// How the token of a row is chosen. Probabilities are those at temperature 1 until the last candidates are known, as in the chain
// of the host (runtime/src/sampler).
struct SampleRow {
    u64 seed;
    u32 draw;           // of the seed's random numbers
    u32 top_k;          // 1 takes the largest; at most MOST_CANDIDATES
    float top_p;        // the fewest candidates with this much of the probability stay
    float min_p;        // of them, those with this part of the largest probability
    float temperature;  // above 0
    u32 unused;
};

struct SampleArgs {
    const float* logits;    // a row per block
    const SampleRow* rows;  // one per row
    u32* tokens;            // one per row
    u32 vocabulary;
};

// Orders as the logits do, and of equal ones, both zeros among them, the first token is the largest. NaN comes last.
DEVICE u64 key_of(float logit, u32 token) {
    u32 bits = __float_as_uint(logit);
    if (bits == 0x80000000) bits = 0;
    bits = bits & 0x80000000 ? ~bits : bits | 0x80000000;
    if (logit != logit) bits = 0;
    return u64(bits) << 32 | (0xffffffff - token);
}
// An infinity counts as the largest number.
DEVICE float logit_of(u64 key) {
    u32 bits = u32(key >> 32);
    return fminf(__uint_as_float(bits & 0x80000000 ? bits & 0x7fffffff : ~bits), -LOWEST);
}
// Whether the logit is minus infinity or NaN, which are never chosen.
DEVICE bool is_impossible(u64 key) { return u32(key >> 32) <= 0x007fffff; }

// Philox 4x32-10 (Salmon et al., 2011): 32 random bits from a seed and a counter.
DEVICE u32 random_bits(u64 seed, u32 counter) {
    u32 c[4] = {counter, 0, 0, 0}, k0 = u32(seed), k1 = u32(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u64 a = u64(0xd2511f53u) * c[0], b = u64(0xcd9e8d57u) * c[2];
        const u32 next[4] = {u32(b >> 32) ^ c[1] ^ k0, u32(b), u32(a >> 32) ^ c[3] ^ k1, u32(a)};
        c[0] = next[0], c[1] = next[1], c[2] = next[2], c[3] = next[3];
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return c[0];
}

struct ArgmaxArgs {
    const float* logits;  // a row per block
    u32* tokens;          // one per row
    u32 vocabulary;
};

KERNEL(argmax, ArgmaxArgs, SAMPLE_THREADS) {
    SHARED(u64, tops, SAMPLE_THREADS / WARP);
    ptx::let_next_kernel_start();
    ptx::wait_for_previous_kernel();
    const float* logits = args.logits + size_t(blockIdx.x) * args.vocabulary;
    u64 top = 0;
    for (u32 token = threadIdx.x; token < args.vocabulary; token += blockDim.x) {
        const u64 key = key_of(logits[token], token);
        top = key > top ? key : top;
    }
#pragma unroll
    for (u32 by = WARP / 2; by > 0; by /= 2) {
        const u64 other = u64(__shfl_xor_sync(ALL_LANES, u32(top >> 32), by)) << 32 | __shfl_xor_sync(ALL_LANES, u32(top), by);
        top = other > top ? other : top;
    }
    if (threadIdx.x % WARP == 0) tops[threadIdx.x / WARP] = top;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (u32 warp = 1; warp < blockDim.x / WARP; warp++) top = tops[warp] > top ? tops[warp] : top;
    args.tokens[blockIdx.x] = 0xffffffff - u32(top);
}

KERNEL(sample, SampleArgs, SAMPLE_THREADS) {
    SHARED(u32, counts, BUCKETS);
    SHARED(u64, candidates, MOST_CANDIDATES);
    SHARED(float, shares, MOST_CANDIDATES);  // probabilities up to a factor
    SHARED(float, heated, MOST_CANDIDATES);  // the same at the row's temperature
    SHARED(u32, chosen, 4);  // the bucket, how many of it are wanted, whether these are all, how many candidates there are
    ptx::let_next_kernel_start();
    ptx::wait_for_previous_kernel();
    const float* logits = args.logits + size_t(blockIdx.x) * args.vocabulary;
    const u32 thread = threadIdx.x;
    const SampleRow row = args.rows[blockIdx.x];
    const u32 k = min(row.top_k, args.vocabulary);

    // The k-th largest key, eight bits at a time from above: keys that begin with `prefix` are still in question. Ends as soon
    // as all of them are wanted.
    u64 prefix = 0;
    u32 wanted = k, shift = 64;
    bool all = false;
    while (shift > 0 && !all) {
        shift -= 8;
        for (u32 i = thread; i < BUCKETS; i += blockDim.x) counts[i] = 0;
        __syncthreads();
        for (u32 token = thread; token < args.vocabulary; token += blockDim.x) {
            const u64 key = key_of(logits[token], token);
            if (shift == 56 || key >> (shift + 8) == prefix) atomicAdd(&counts[key >> shift & 0xff], 1u);
        }
        __syncthreads();
        if (thread == 0) {
            u32 bucket = BUCKETS - 1, left = wanted;
            while (bucket > 0 && counts[bucket] < left) left -= counts[bucket--];
            chosen[0] = bucket;
            chosen[1] = left;
            chosen[2] = counts[bucket] == left;
            chosen[3] = 0;
        }
        __syncthreads();
        prefix = prefix << 8 | chosen[0];
        wanted = chosen[1];
        all = chosen[2];
    }

    // The candidates, in any order, then the largest first.
    for (u32 i = thread; i < MOST_CANDIDATES; i += blockDim.x) candidates[i] = 0;
    __syncthreads();
    for (u32 token = thread; token < args.vocabulary; token += blockDim.x) {
        const u64 key = key_of(logits[token], token);
        if (key >> shift >= prefix) {
            const u32 at = atomicAdd(&chosen[3], 1u);
            if (at < MOST_CANDIDATES) candidates[at] = key;
        }
    }
    u32 size = 1;
    while (size < k) size *= 2;
    // A bitonic sort (Batcher, 1968).
    for (u32 run = 2; run <= size; run *= 2) {
        for (u32 distance = run / 2; distance > 0; distance /= 2) {
            __syncthreads();
            for (u32 i = thread; i < size; i += blockDim.x) {
                const u32 other = i ^ distance;
                if (other <= i) continue;
                const bool falling = (i & run) == 0;
                const u64 a = candidates[i], b = candidates[other];
                if (falling ? a < b : a > b) candidates[i] = b, candidates[other] = a;
            }
        }
    }
    __syncthreads();

    for (u32 i = thread; i < k; i += blockDim.x) {
        const float below = (logit_of(candidates[i]) - logit_of(candidates[0])) * 1.44269504f;
        const bool impossible = is_impossible(candidates[i]);
        shares[i] = impossible ? 0.0f : ptx::exp2_fast(below);
        heated[i] = impossible ? 0.0f : ptx::exp2_fast(below / row.temperature);
    }
    __syncthreads();
    if (thread != 0) return;
    // One thread adds up in the candidates' order, so that the sums are the same every time.
    float total = 0.0f, reached = shares[0], mass = 0.0f, left;
    for (u32 i = 0; i < k; i++) total += shares[i];
    u32 kept = 1;
    while (kept < k && reached < row.top_p * total) reached += shares[kept++];
    while (kept > 1 && shares[kept - 1] < row.min_p) kept--;
    for (u32 i = 0; i < kept; i++) mass += heated[i];
    left = float(random_bits(row.seed, row.draw) >> 8) * 0x1p-24f * mass - heated[0];
    u32 winner = 0;
    for (u32 i = 1; i < kept && left >= 0.0f; i++) {
        // Rounding may leave a rest after the last: then that one it is.
        if (heated[i] > 0.0f) winner = i;
        left -= heated[i];
    }
    args.tokens[blockIdx.x] = is_impossible(candidates[winner]) && row.top_k > 1 ? 0 : 0xffffffff - u32(candidates[winner]);
}
