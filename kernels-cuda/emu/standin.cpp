// A stand-in for the CUDA driver library, for tests on hosts without a GPU: the functions that this crate calls, over host
// memory, with kernels run by the emulator.
//
// It is as unhelpful as a driver may be. Device memory starts as garbage. What a stream is given runs when somebody waits for
// it, and not before, so code that forgets to wait reads garbage. A failed kernel makes every later call fail. Faults are
// made with `standin_set`.
#define RUSTAI_EMULATOR_MAIN
#include "emulator.h"

#include <cstdlib>
#include <map>
#include <ctime>
#include <memory>
#include <mutex>

namespace {

// Results, as cuda.h numbers them.
enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    ALREADY_REGISTERED = 712,
    NOT_REGISTERED = 713,
    LAUNCH_FAILED = 719,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALID = 901,
};

using Address = unsigned long long;
using Work = std::function<Result()>;

struct Graph {
    std::vector<Work> work;
};

struct Stream {
    std::vector<Work> queue;
    Graph* capture = nullptr;
};

// Its time is when the stream's work has come so far.
struct Event {
    bool recorded = false;
    double milliseconds = 0.0;
};

struct Function {
    const emu::Registered* kernel;
    unsigned dynamic_limit = 48 << 10;
};

struct Module {
    std::map<std::string, std::unique_ptr<Function>> functions;
};

struct State {
    std::map<std::string, long> settings{
        {"devices", 1}, {"driver", 13000}, {"capability", 90}, {"memory", 4l << 30}, {"fail_launch", 0},
        {"stub", 0}, {"init", 0}, {"fail_host_memory", 0}, {"fail_register", 0}};
    std::map<Address, size_t> allocations;
    std::map<void*, size_t> host_allocations;
    size_t allocated = 0;
    size_t host_allocated = 0, host_most = 0;
    std::map<void*, size_t> registered;
    long registrations = 0;
    std::vector<Stream*> streams;
    long launches = 0, graph_launches = 0, fetched = 0, fetched_locked = 0, waits = 0;
    Result lost = SUCCESS;
};

std::recursive_mutex lock;
State state;
int the_context;
thread_local void* current_context = nullptr;

long setting(const char* name) { return state.settings[name]; }

Result run(std::vector<Work>& queue) {
    std::vector<Work> work;
    work.swap(queue);
    for (auto& one : work) {
        if (state.lost) break;
        Result result = one();
        if (result) state.lost = result;
    }
    return state.lost;
}

Result run_all() {
    for (Stream* stream : state.streams) run(stream->queue);
    return state.lost;
}

// Whether `bytes` at `address` are inside one allocation.
bool inside(Address address, size_t bytes) {
    auto next = state.allocations.upper_bound(address);
    if (next == state.allocations.begin()) return false;
    auto found = std::prev(next);
    return address + bytes <= found->first + found->second;
}

const char* name_of(int result) {
    switch (result) {
        case SUCCESS: return "CUDA_SUCCESS";
        case INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
        case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
        case 34: return "CUDA_ERROR_STUB_LIBRARY";
        case NO_DEVICE: return "CUDA_ERROR_NO_DEVICE";
        case INVALID_DEVICE: return "CUDA_ERROR_INVALID_DEVICE";
        case INVALID_CONTEXT: return "CUDA_ERROR_INVALID_CONTEXT";
        case INVALID_HANDLE: return "CUDA_ERROR_INVALID_HANDLE";
        case NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
        case ALREADY_REGISTERED: return "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED";
        case NOT_REGISTERED: return "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED";
        case LAUNCH_FAILED: return "CUDA_ERROR_LAUNCH_FAILED";
        case 802: return "CUDA_ERROR_SYSTEM_NOT_READY";
        case CAPTURE_UNSUPPORTED: return "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
        case CAPTURE_INVALID: return "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
        default: return nullptr;
    }
}

// CUlaunchConfig of cuda.h.
struct LaunchConfig {
    unsigned grid[3], threads[3], shared;
    void* stream;
    void* attributes;
    unsigned attribute_count;
};

}  // namespace

#define DRIVER extern "C" __attribute__((visibility("default"))) int
#define GUARDED                                        \
    std::lock_guard<std::recursive_mutex> guard(lock); \
    if (!current_context) return INVALID_CONTEXT;      \
    if (state.lost) return state.lost

// ---- for tests

// Settings: devices, driver (its version), capability (10 * major + minor), memory (bytes), fail_launch (the so-many-th launch
// from now on fails; 0 for none), stub (the library is one to link against), init (what cuInit returns), fail_host_memory (there is none that can be
// page-locked), fail_register (others' memory cannot be page-locked), schedule (bit 16: what is asynchronous is over when it begins), drop (a synchronisation that is left out).
DRIVER standin_set(const char* name, long value) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    std::string key = name;
    if (key == "schedule") {
        emu::schedule = static_cast<unsigned>(value) & 0xffff;
        emu::early = value >> 16 & 1;
    } else if (key == "drop") {
        emu::dropped_site = static_cast<unsigned>(value);
    } else if (state.settings.count(key)) {
        state.settings[key] = value;
    } else {
        return INVALID_VALUE;
    }
    return SUCCESS;
}

// Counters: launches, graph_launches, allocated (bytes), allocations, host_allocations, host_most (the most bytes of page-locked
// memory at a time since the last reset), fetched (bytes copied to the host), waits (for devices, streams and
// events), registered (ranges of others' memory that are page-locked), registrations (how many there were), fetched_locked
// (bytes copied to such ranges).
extern "C" __attribute__((visibility("default"))) long standin_get(const char* name) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    std::string key = name;
    if (key == "launches") return state.launches;
    if (key == "graph_launches") return state.graph_launches;
    if (key == "allocated") return static_cast<long>(state.allocated);
    if (key == "allocations") return static_cast<long>(state.allocations.size());
    if (key == "host_allocations") return static_cast<long>(state.host_allocations.size());
    if (key == "host_most") return static_cast<long>(state.host_most);
    if (key == "fetched") return state.fetched;
    if (key == "fetched_locked") return state.fetched_locked;
    if (key == "registered") return static_cast<long>(state.registered.size());
    if (key == "registrations") return state.registrations;
    if (key == "waits") return state.waits;
    return -1;
}

// As if the process were new, but for memory that is still allocated.
DRIVER standin_reset() {
    std::lock_guard<std::recursive_mutex> guard(lock);
    auto allocations = state.allocations;
    auto host_allocations = state.host_allocations;
    auto allocated = state.allocated, host_allocated = state.host_allocated;
    auto streams = state.streams;
    auto registered = state.registered;
    state = State();
    state.registered = registered;
    state.allocations = allocations;
    state.host_allocations = host_allocations;
    state.allocated = allocated;
    state.host_allocated = state.host_most = host_allocated;
    state.streams = streams;
    for (Stream* stream : state.streams) stream->queue.clear();
    emu::schedule = emu::dropped_site = 0;
    emu::early = false;
    emu::sync_sites.clear();
    emu::failure.clear();
    return SUCCESS;
}

// Why a kernel failed.
extern "C" __attribute__((visibility("default"))) const char* standin_failure() { return emu::failure.c_str(); }

// The synchronisations that kernels met since the last call; returns how many there are.
DRIVER standin_sync_sites(unsigned* sites, unsigned most) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    unsigned count = 0;
    for (unsigned site : emu::sync_sites)
        if (count < most) sites[count++] = site;
    emu::sync_sites.clear();
    return static_cast<int>(count);
}

// Bytes of a kernel's parameters; -1 if there is no such kernel.
DRIVER standin_args_bytes(const char* name) {
    for (auto& kernel : emu::kernels())
        if (!strcmp(kernel.name, name)) return static_cast<int>(kernel.args_bytes);
    return -1;
}

// ---- the driver's functions

DRIVER cuInit(unsigned) {
    if (setting("stub")) return 34;
    if (setting("init")) return static_cast<int>(setting("init"));
    return setting("devices") > 0 ? SUCCESS : NO_DEVICE;
}
DRIVER cuDriverGetVersion(int* version) {
    *version = static_cast<int>(setting("driver"));
    return SUCCESS;
}
DRIVER cuGetErrorName(int result, const char** name) {
    *name = name_of(result);
    return *name ? SUCCESS : INVALID_VALUE;
}
DRIVER cuGetErrorString(int result, const char** name) { return cuGetErrorName(result, name); }
DRIVER cuDeviceGetCount(int* count) {
    *count = static_cast<int>(setting("devices"));
    return SUCCESS;
}
DRIVER cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal < setting("devices") ? SUCCESS : INVALID_DEVICE;
}
DRIVER cuDeviceGetName(char* name, int bytes, int) {
    snprintf(name, static_cast<size_t>(bytes), "emulated device");
    return SUCCESS;
}
DRIVER cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = static_cast<size_t>(setting("memory"));
    return SUCCESS;
}
DRIVER cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case 16: *value = 4; break;                                                  // multiprocessors
        case 38: *value = 1 << 20; break;                                            // bytes of L2
        case 75: *value = static_cast<int>(setting("capability") / 10); break;
        case 76: *value = static_cast<int>(setting("capability") % 10); break;
        case 115: *value = 1; break;                                                 // memory pools
        default: *value = 0;
    }
    return SUCCESS;
}
DRIVER cuDevicePrimaryCtxRetain(void** context, int) {
    *context = &the_context;
    return SUCCESS;
}
DRIVER cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
DRIVER cuCtxSetCurrent(void* context) {
    current_context = context;
    return SUCCESS;
}
DRIVER cuCtxGetCurrent(void** context) {
    *context = current_context;
    return SUCCESS;
}
DRIVER cuCtxSynchronize() {
    GUARDED;
    for (Stream* stream : state.streams)
        if (stream->capture) return CAPTURE_UNSUPPORTED;
    state.waits++;
    return run_all();
}

DRIVER cuMemGetInfo_v2(size_t* free, size_t* total) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    *total = static_cast<size_t>(setting("memory"));
    *free = *total > state.allocated ? *total - state.allocated : 0;
    return SUCCESS;
}
DRIVER cuMemAlloc_v2(Address* address, size_t bytes) {
    GUARDED;
    if (bytes == 0) return INVALID_VALUE;
    size_t most = static_cast<size_t>(setting("memory"));
    if (bytes > most || state.allocated > most - bytes) return OUT_OF_MEMORY;
    void* memory = aligned_alloc(512, (bytes + 511) / 512 * 512);
    if (!memory) return OUT_OF_MEMORY;
    memset(memory, emu::POISON, bytes);
    *address = reinterpret_cast<Address>(memory);
    state.allocations[*address] = bytes;
    state.allocated += bytes;
    return SUCCESS;
}
DRIVER cuMemFree_v2(Address address) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    auto found = state.allocations.find(address);
    if (found == state.allocations.end()) return INVALID_VALUE;
    run_all();
    state.allocated -= found->second;
    state.allocations.erase(found);
    free(reinterpret_cast<void*>(address));
    return SUCCESS;
}
DRIVER cuMemcpyHtoD_v2(Address to, const void* from, size_t bytes) {
    GUARDED;
    if (!inside(to, bytes)) return INVALID_VALUE;
    memcpy(reinterpret_cast<void*>(to), from, bytes);
    return SUCCESS;
}
DRIVER cuMemcpyDtoH_v2(void* to, Address from, size_t bytes) {
    GUARDED;
    if (!inside(from, bytes)) return INVALID_VALUE;
    memcpy(to, reinterpret_cast<void*>(from), bytes);
    state.fetched += static_cast<long>(bytes);
    return SUCCESS;
}

DRIVER cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
    GUARDED;
    if (setting("fail_host_memory") || bytes == 0) return bytes ? OUT_OF_MEMORY : INVALID_VALUE;
    *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!*memory) return OUT_OF_MEMORY;
    memset(*memory, emu::POISON, bytes);
    state.host_allocations[*memory] = bytes;
    state.host_allocated += bytes;
    state.host_most = std::max(state.host_most, state.host_allocated);
    return SUCCESS;
}
DRIVER cuMemFreeHost(void* memory) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    run_all();
    auto found = state.host_allocations.find(memory);
    if (found == state.host_allocations.end()) return INVALID_VALUE;
    state.host_allocated -= found->second;
    state.host_allocations.erase(found);
    free(memory);
    return SUCCESS;
}
// Whether `bytes` at `memory` are page-locked by somebody else than its allocator.
bool is_registered(void* memory, size_t bytes) {
    auto next = state.registered.upper_bound(memory);
    if (next == state.registered.begin()) return false;
    auto found = std::prev(next);
    return static_cast<char*>(memory) + bytes <= static_cast<char*>(found->first) + found->second;
}
DRIVER cuMemHostRegister_v2(void* memory, size_t bytes, unsigned) {
    GUARDED;
    if (setting("fail_register")) return OUT_OF_MEMORY;
    if (!memory || bytes == 0) return INVALID_VALUE;
    auto next = state.registered.lower_bound(memory);
    bool overlaps = next != state.registered.end() && next->first < static_cast<char*>(memory) + bytes;
    if (overlaps || is_registered(memory, 1)) return ALREADY_REGISTERED;
    state.registered[memory] = bytes;
    state.registrations++;
    return SUCCESS;
}
DRIVER cuMemHostUnregister(void* memory) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    auto found = state.registered.find(memory);
    if (found == state.registered.end()) return NOT_REGISTERED;
    // Copies that still run would write to memory that may be gone.
    for (Stream* stream : state.streams)
        if (!stream->queue.empty()) return state.lost = LAUNCH_FAILED;
    // It must still be there.
    volatile char* first = static_cast<char*>(memory);
    first[0] = first[0], first[found->second - 1] = first[found->second - 1];
    state.registered.erase(found);
    return SUCCESS;
}
// Puts a copy behind a stream's work. It reads and writes when it runs, and not before.
int copy_later(void* stream, void* to, const void* from, size_t bytes) {
    auto* one = static_cast<Stream*>(stream);
    auto& queue = one->capture ? one->capture->work : one->queue;
    queue.push_back([=]() -> Result {
        memcpy(to, from, bytes);
        return SUCCESS;
    });
    return SUCCESS;
}
DRIVER cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void* stream) {
    GUARDED;
    if (!inside(to, bytes)) return INVALID_VALUE;
    return copy_later(stream, reinterpret_cast<void*>(to), from, bytes);
}
DRIVER cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void* stream) {
    GUARDED;
    if (!inside(from, bytes)) return INVALID_VALUE;
    state.fetched += static_cast<long>(bytes);
    if (is_registered(to, bytes)) state.fetched_locked += static_cast<long>(bytes);
    return copy_later(stream, to, reinterpret_cast<const void*>(from), bytes);
}

DRIVER cuStreamCreate(void** stream, unsigned) {
    GUARDED;
    auto* made = new Stream;
    state.streams.push_back(made);
    *stream = made;
    return SUCCESS;
}
DRIVER cuStreamDestroy_v2(void* stream) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    auto* gone = static_cast<Stream*>(stream);
    run(gone->queue);
    state.streams.erase(std::remove(state.streams.begin(), state.streams.end(), gone), state.streams.end());
    delete gone;
    return SUCCESS;
}
DRIVER cuStreamSynchronize(void* stream) {
    GUARDED;
    auto* one = static_cast<Stream*>(stream);
    // The stream that copies without a stream use has nothing to wait for: here they are over when they return.
    if (!one) return SUCCESS;
    if (one->capture) return CAPTURE_INVALID;
    state.waits++;
    return run(one->queue);
}
DRIVER cuStreamBeginCapture_v2(void* stream, int) {
    GUARDED;
    auto* one = static_cast<Stream*>(stream);
    if (!one || one->capture) return INVALID_VALUE;
    one->capture = new Graph;
    return SUCCESS;
}
DRIVER cuStreamEndCapture(void* stream, void** graph) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    auto* one = static_cast<Stream*>(stream);
    *graph = one->capture;
    one->capture = nullptr;
    return state.lost;
}
DRIVER cuStreamIsCapturing(void* stream, int* status) {
    *status = static_cast<Stream*>(stream)->capture ? 1 : 0;
    return SUCCESS;
}

DRIVER cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    GUARDED;
    *executable = new Graph(*static_cast<Graph*>(graph));
    return SUCCESS;
}
DRIVER cuGraphLaunch(void* executable, void* stream) {
    GUARDED;
    state.graph_launches++;
    auto* one = static_cast<Stream*>(stream);
    auto& work = static_cast<Graph*>(executable)->work;
    one->queue.insert(one->queue.end(), work.begin(), work.end());
    return SUCCESS;
}
DRIVER cuGraphExecDestroy(void* executable) {
    delete static_cast<Graph*>(executable);
    return SUCCESS;
}
DRIVER cuGraphDestroy(void* graph) {
    delete static_cast<Graph*>(graph);
    return SUCCESS;
}

DRIVER cuEventCreate(void** event, unsigned) {
    GUARDED;
    *event = new Event;
    return SUCCESS;
}
DRIVER cuEventDestroy_v2(void* event) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    run_all();
    delete static_cast<Event*>(event);
    return SUCCESS;
}
DRIVER cuEventRecord(void* event, void* stream) {
    GUARDED;
    auto* one = static_cast<Event*>(event);
    one->recorded = true;
    static_cast<Stream*>(stream)->queue.push_back([=]() -> Result {
        timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        one->milliseconds = double(now.tv_sec) * 1e3 + double(now.tv_nsec) * 1e-6;
        return SUCCESS;
    });
    return SUCCESS;
}
DRIVER cuEventQuery(void* event) { return static_cast<Event*>(event)->recorded ? SUCCESS : INVALID_HANDLE; }
DRIVER cuEventSynchronize(void*) {
    GUARDED;
    state.waits++;
    return run_all();
}
DRIVER cuEventElapsedTime(float* milliseconds, void* start, void* end) {
    if (!static_cast<Event*>(start)->recorded || !static_cast<Event*>(end)->recorded) return INVALID_HANDLE;
    run_all();
    *milliseconds = static_cast<float>(static_cast<Event*>(end)->milliseconds - static_cast<Event*>(start)->milliseconds);
    return SUCCESS;
}

DRIVER cuModuleLoadData(void** module, const void* image) {
    GUARDED;
    if (!image) return INVALID_VALUE;
    *module = new Module;
    return SUCCESS;
}
DRIVER cuModuleUnload(void* module) {
    delete static_cast<Module*>(module);
    return SUCCESS;
}
DRIVER cuModuleGetFunction(void** function, void* module, const char* name) {
    GUARDED;
    for (auto& kernel : emu::kernels())
        if (!strcmp(kernel.name, name)) {
            auto& slot = static_cast<Module*>(module)->functions[name];
            if (!slot) slot.reset(new Function{&kernel});
            *function = slot.get();
            return SUCCESS;
        }
    return NOT_FOUND;
}
DRIVER cuFuncSetAttribute(void* function, int attribute, int value) {
    GUARDED;
    if (attribute != 8 || value < 0 || value > 227 << 10) return INVALID_VALUE;
    static_cast<Function*>(function)->dynamic_limit = static_cast<unsigned>(value);
    return SUCCESS;
}

DRIVER cuLaunchKernelEx(const LaunchConfig* config, void* function, void** parameters, void**) {
    GUARDED;
    auto* one = static_cast<Function*>(function);
    const emu::Registered kernel = *one->kernel;
    const unsigned *grid = config->grid, *threads = config->threads;
    bool valid = grid[0] && grid[1] && grid[2] && grid[1] <= 65535 && grid[2] <= 65535 && threads[0] &&
                 threads[1] == 1 && threads[2] == 1 && threads[0] <= kernel.max_threads &&
                 config->shared <= one->dynamic_limit;
    if (!valid) return INVALID_VALUE;
    auto bytes = static_cast<const unsigned char*>(parameters[0]);
    std::vector<unsigned char> args(bytes, bytes + kernel.args_bytes);
    dim3 blocks{grid[0], grid[1], grid[2]};
    unsigned size = threads[0], shared = config->shared;
    Work work = [=]() -> Result {
        state.launches++;
        long& countdown = state.settings["fail_launch"];
        if (countdown && --countdown == 0) {
            emu::failure = "a fault was injected";
            return LAUNCH_FAILED;
        }
        // Parameters are aligned as the kernel's compiler expects.
        alignas(64) static unsigned char aligned[4096];
        memcpy(aligned, args.data(), args.size());
        return emu::launch(kernel.kernel, aligned, blocks, size, shared) ? SUCCESS : LAUNCH_FAILED;
    };
    auto* stream = static_cast<Stream*>(config->stream);
    auto& queue = stream->capture ? stream->capture->work : stream->queue;
    queue.push_back(work);
    return SUCCESS;
}
