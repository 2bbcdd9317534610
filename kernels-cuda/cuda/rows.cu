// Work on rows of activations: embedding, normalization, quantization, and element by element.
#include "fragments.cuh"
#include "quantize.cuh"

constexpr u32 ROW_THREADS = 256;

// ---- rows of an embedding table

struct EmbedArgs {
    Planes planes;
    const u32* tokens;
    float* out;
    u32 blocks;  // in a row
    u32 rows;    // of the table
    float scale;
};

// A token per block in y. A token that the table does not have gives NaN, so that the fault shows.
template <class Type>
DEVICE void embed(const EmbedArgs& args) {
    ptx::let_next_kernel_start();
    ptx::wait_for_previous_kernel();
    const u32 block = blockIdx.x * blockDim.x + threadIdx.x;
    if (block >= args.blocks) return;
    const u32 token = args.tokens[blockIdx.y];
    float* out = args.out + (size_t(blockIdx.y) * args.blocks + block) * Type::COLUMNS;
    if (token >= args.rows) {
        for (u32 i = 0; i < Type::COLUMNS; i++) out[i] = __uint_as_float(0x7fffffff);
        return;
    }
    const size_t at = size_t(token) * args.blocks + block;
    Type raw;
    raw.load(args.planes, at);
    typename Type::Prepared weights;
    raw.prepare(at, weights);
#pragma unroll
    for (u32 i = 0; i < Type::COLUMNS; i += 4) {
        float4 four = {Type::value(weights, i), Type::value(weights, i + 1), Type::value(weights, i + 2),
                       Type::value(weights, i + 3)};
        if (args.scale != 1.0f) four = {four.x * args.scale, four.y * args.scale, four.z * args.scale, four.w * args.scale};
        *reinterpret_cast<float4*>(out + i) = four;
    }
}

#define EMBED(name, Type) KERNEL(embed_##name, EmbedArgs, ROW_THREADS) { embed<Type>(args); }
ALL_TYPES(EMBED)

// ---- quantization and rounding to f16, with or without RMS normalization before it

struct NormArgs {
    const float* x;
    const float* weight;  // per column; none means no normalization
    float* out;           // the result as it is, if wanted
    i8* quants;           // the result quantized, if wanted
    BlockScale* scales;
    u32* halves;  // the result in f16, if wanted
    u32 width;    // a multiple of 4, and of 32 if the result is quantized or in f16
    float eps;
};

// Rounds four values of a row to f16. An infinity is no number, as in blocks of 8 bits.
DEVICE void round_to_halves(const float (&v)[4], u32 column, u32* row) {
    float scaled[4];
#pragma unroll
    for (int i = 0; i < 4; i++) scaled[i] = within_f16(v[i] * HALVES_UNIT);
    u32* words = row + column / 16 * 8 + column % 16 / 4;
    words[0] = ptx::pack_halves(scaled[0], scaled[1]);
    words[4] = ptx::pack_halves(scaled[2], scaled[3]);
}

// A row per block. Zhang and Sennrich (2019): out = x / sqrt(mean(x^2) + eps) * weight.
KERNEL(norm_rows, NormArgs, ROW_THREADS) {
    SHARED(float, scratch, ROW_THREADS / WARP);
    ptx::let_next_kernel_start();
    ptx::wait_for_previous_kernel();
    const float* x = args.x + size_t(blockIdx.x) * args.width;
    float scale = 1.0f;
    if (args.weight) {
        float squares = 0.0f;
        for (u32 column = threadIdx.x * 4; column < args.width; column += blockDim.x * 4) {
            uint4 raw = ptx::load16(x + column);
            float a = __uint_as_float(raw.x), b = __uint_as_float(raw.y), c = __uint_as_float(raw.z),
                  d = __uint_as_float(raw.w);
            squares += a * a + b * b + (c * c + d * d);
        }
        squares = block_sum(squares, scratch);
        scale = __fdiv_rn(1.0f, sqrtf(squares / float(args.width) + args.eps));
    }
    const u32 blocks = args.width / BLOCK;
    // Whole warps go round, since lanes quantize together.
    const u32 lane = threadIdx.x % WARP;
    for (u32 start = threadIdx.x / WARP * WARP * 4; start < args.width; start += blockDim.x * 4) {
        const u32 column = start + lane * 4;
        const bool real = column < args.width;
        float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (real) {
            uint4 raw = ptx::load16(x + column);
            v[0] = __uint_as_float(raw.x), v[1] = __uint_as_float(raw.y), v[2] = __uint_as_float(raw.z),
            v[3] = __uint_as_float(raw.w);
            if (args.weight) {
                const float4 w = *reinterpret_cast<const float4*>(args.weight + column);
                v[0] = v[0] * scale * w.x, v[1] = v[1] * scale * w.y, v[2] = v[2] * scale * w.z, v[3] = v[3] * scale * w.w;
            }
            if (args.out) {
                float4 four = {v[0], v[1], v[2], v[3]};
                *reinterpret_cast<float4*>(args.out + size_t(blockIdx.x) * args.width + column) = four;
            }
        }
        if (args.halves && real) round_to_halves(v, column, args.halves + size_t(blockIdx.x) * args.width / 2);
        if (args.quants) {
            quantize(v, column, real, args.quants + size_t(blockIdx.x) * args.width,
                     args.scales + size_t(blockIdx.x) * blocks, blocks);
        }
    }
}

// ---- element by element

struct ElementArgs {
    const float* a;
    const float* b;  // none for operations with one operand
    float* out;      // may be a or b
    u64 count;
    u32 operation;
};

enum Operation { ADD, MULTIPLY, SILU, SWIGLU };

KERNEL(elements, ElementArgs, ROW_THREADS) {
    ptx::let_next_kernel_start();
    ptx::wait_for_previous_kernel();
    for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i < args.count; i += u64(gridDim.x) * blockDim.x) {
        const float a = args.a[i], b = args.b ? args.b[i] : 0.0f;
        float out = 0.0f;
        switch (args.operation) {
            case ADD: out = a + b; break;
            case MULTIPLY: out = a * b; break;
            case SILU: out = silu(a); break;
            case SWIGLU: out = silu(a) * b; break;
        }
        args.out[i] = out;
    }
}

// ---- choosing rows

struct SelectArgs {
    const float* x;
    const u32* rows;  // which row of x each row of out is
    float* out;
    u32 width;
    u32 count;  // rows of x
};

KERNEL(select_rows, SelectArgs, ROW_THREADS) {
    ptx::let_next_kernel_start();
    ptx::wait_for_previous_kernel();
    const u32 row = args.rows[blockIdx.x];
    for (u32 i = threadIdx.x; i < args.width; i += blockDim.x) {
        float value = row < args.count ? args.x[size_t(row) * args.width + i] : __uint_as_float(0x7fffffff);
        args.out[size_t(blockIdx.x) * args.width + i] = value;
    }
}

// ---- softmax

struct SoftmaxArgs {
    const float* x;
    float* out;  // may be x
    u32 width;
};

// A row per block: out = exp(x) / sum(exp(x)), with the largest value taken off first so that nothing overflows.
KERNEL(softmax, SoftmaxArgs, ROW_THREADS) {
    SHARED(float, tops, ROW_THREADS / WARP);
    SHARED(float, sums, ROW_THREADS / WARP);
    ptx::let_next_kernel_start();
    ptx::wait_for_previous_kernel();
    const float* x = args.x + size_t(blockIdx.x) * args.width;
    float* out = args.out + size_t(blockIdx.x) * args.width;
    float top = LOWEST;
    for (u32 i = threadIdx.x; i < args.width; i += blockDim.x) top = fmaxf(top, x[i]);
    top = block_max(top, tops);
    // A thread reads and writes the same columns, so the row may be changed in place.
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < args.width; i += blockDim.x) {
        const float power = ptx::exp2_fast(1.44269504f * (x[i] - top));
        out[i] = power;
        sum += power;
    }
    const float factor = __fdiv_rn(1.0f, block_sum(sum, sums));
    for (u32 i = threadIdx.x; i < args.width; i += blockDim.x) out[i] *= factor;
}
