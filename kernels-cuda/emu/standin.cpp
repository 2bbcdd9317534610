// A stand-in for the CUDA driver library, for tests on hosts without a GPU: the functions that this crate calls, over host
// memory, with kernels run by the emulator.
//
// It is as unhelpful as a driver may be. Device memory starts as garbage. What a stream is given runs when somebody waits for
// it, and not before, so code that forgets to wait reads garbage. A failed kernel makes every later call fail, until the context
// is gone. Faults are made with `standin_set` and `standin_fault`.
#define RUSTAI_EMULATOR_MAIN
#include "emulator.h"

#include <cstdlib>
#include <map>
#include <ctime>
#include <memory>
#include <mutex>
#include <thread>

namespace {

// Results, as cuda.h numbers them.
enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    ECC_UNCORRECTABLE = 214,
    INVALID_PTX = 218,
    UNSUPPORTED_PTX_VERSION = 222,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    CONTEXT_IS_DESTROYED = 709,
    ALREADY_REGISTERED = 712,
    NOT_REGISTERED = 713,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALID = 901,
    UNKNOWN = 999,
};

using Address = unsigned long long;
using Work = std::function<Result()>;

struct Graph {
    std::vector<Work> work;
};

// A call that fails: the so-many-th from now on, with this result.
struct Fault {
    long left;
    int result;
};

struct Stream {
    std::vector<Work> queue;
    Graph* capture = nullptr;
    std::thread::id captured_by;
};

// Its time is when the stream's work has come so far.
struct Event {
    bool recorded = false;
    double milliseconds = 0.0;
};

// What a block has without asking.
constexpr unsigned SHARED = 48 << 10;

struct Function {
    const emu::Registered* kernel;
    unsigned dynamic_limit = SHARED;
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
    // Host memory of copies that streams were given and have not made, by their numbers.
    std::map<long, std::pair<const char*, size_t>> copying;
    long copies = 0;
    std::vector<Stream*> streams;
    long launches = 0, graph_launches = 0, fetched = 0, fetched_locked = 0, waits = 0;
    long overlapping = 0, overlapping_captured = 0, attributes = 0, lookups = 0, tensor_maps = 0;
    long contexts = 0;
    std::map<std::string, Fault> faults;
    Result lost = SUCCESS;
};

std::recursive_mutex lock;
State state;
int the_context;
thread_local void* current_context = nullptr;

long setting(const char* name) { return state.settings[name]; }

// Results after which a context is of no use (CUDA Driver API, CUresult: "The process must be terminated and relaunched").
bool is_final(int result) {
    return result == ECC_UNCORRECTABLE || result == ILLEGAL_ADDRESS || result == LAUNCH_FAILED || result == UNKNOWN;
}

// The result of a call that is to fail, by the name of its function without the version; 0 for others.
int fault(const char* function) {
    if (state.faults.empty()) return SUCCESS;
    std::string name = function;
    if (name.size() > 3 && name.compare(name.size() - 3, 3, "_v2") == 0) name.resize(name.size() - 3);
    auto found = state.faults.find(name);
    if (found == state.faults.end() || --found->second.left > 0) return SUCCESS;
    const int result = found->second.result;
    state.faults.erase(found);
    if (is_final(result)) state.lost = static_cast<Result>(result);
    return result;
}

// Bytes of shared memory that a block can ask for (CUDA C++ Programming Guide, "Technical Specifications per Compute
// Capability").
unsigned most_shared() {
    switch (setting("capability")) {
        case 80: case 87: return 163 << 10;
        case 86: case 89: case 120: case 121: return 99 << 10;
        default: return 227 << 10;
    }
}

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

// Whether the calling thread captures a stream. It may not free anything then (CUDA Driver API,
// cuThreadExchangeStreamCaptureMode).
bool captures() {
    for (Stream* stream : state.streams)
        if (stream->capture && stream->captured_by == std::this_thread::get_id()) return true;
    return false;
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
        case NO_BINARY_FOR_GPU: return "CUDA_ERROR_NO_BINARY_FOR_GPU";
        case ECC_UNCORRECTABLE: return "CUDA_ERROR_ECC_UNCORRECTABLE";
        case INVALID_PTX: return "CUDA_ERROR_INVALID_PTX";
        case UNSUPPORTED_PTX_VERSION: return "CUDA_ERROR_UNSUPPORTED_PTX_VERSION";
        case INVALID_HANDLE: return "CUDA_ERROR_INVALID_HANDLE";
        case NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
        case ILLEGAL_ADDRESS: return "CUDA_ERROR_ILLEGAL_ADDRESS";
        case CONTEXT_IS_DESTROYED: return "CUDA_ERROR_CONTEXT_IS_DESTROYED";
        case ALREADY_REGISTERED: return "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED";
        case NOT_REGISTERED: return "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED";
        case LAUNCH_FAILED: return "CUDA_ERROR_LAUNCH_FAILED";
        case NOT_SUPPORTED: return "CUDA_ERROR_NOT_SUPPORTED";
        case 802: return "CUDA_ERROR_SYSTEM_NOT_READY";
        case CAPTURE_UNSUPPORTED: return "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
        case CAPTURE_INVALID: return "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
        case UNKNOWN: return "CUDA_ERROR_UNKNOWN";
        default: return nullptr;
    }
}

// CUlaunchAttribute and CUlaunchConfig of cuda.h.
struct LaunchAttribute {
    int id;
    char pad[4];
    union {
        char bytes[64];
        int word;
    } value;
};
constexpr int PROGRAMMATIC_STREAM_SERIALIZATION = 6;

struct LaunchConfig {
    unsigned grid[3], threads[3], shared;
    void* stream;
    const LaunchAttribute* attributes;
    unsigned attribute_count;
};

}  // namespace

#define DRIVER extern "C" __attribute__((visibility("default"))) int
#define GUARDED                                        \
    std::lock_guard<std::recursive_mutex> guard(lock); \
    if (!current_context) return INVALID_CONTEXT;      \
    if (!state.contexts) return CONTEXT_IS_DESTROYED;  \
    if (state.lost) return state.lost;                 \
    if (int result = fault(__func__)) return result

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

// The `nth` call from now on of a function, named without its version, does nothing and returns `result`. Results that say that a
// context is lost are those of every later call, too, until the context is gone.
DRIVER standin_fault(const char* function, long nth, int result) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (nth < 1 || !result) return INVALID_VALUE;
    state.faults[function] = Fault{nth, result};
    return SUCCESS;
}

// Counters: launches, graph_launches, allocated (bytes), allocations, host_allocations, host_most (the most bytes of page-locked
// memory at a time since the last reset), fetched (bytes copied to the host), waits (for devices, streams and
// events), registered (ranges of others' memory that are page-locked), registrations (how many there were), fetched_locked
// (bytes copied to such ranges), overlapping (launches that may begin before the one before them has ended) and
// overlapping_captured (those of them that were recorded), lookups (of kernels by name), attributes (of kernels that were set),
// tensor_maps (that were made), faults (that are still to come).
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
    if (key == "overlapping") return state.overlapping;
    if (key == "overlapping_captured") return state.overlapping_captured;
    if (key == "lookups") return state.lookups;
    if (key == "attributes") return state.attributes;
    if (key == "tensor_maps") return state.tensor_maps;
    if (key == "faults") return static_cast<long>(state.faults.size());
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
    auto contexts = state.contexts;
    state = State();
    state.contexts = contexts;
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

// Runs a kernel without parameters, for tests of the emulator itself, in one block and the order that was set; why it failed is
// `standin_failure`.
DRIVER standin_run(const char* name, unsigned threads, unsigned shared) {
    alignas(64) static const unsigned char none[64] = {};
    std::lock_guard<std::recursive_mutex> guard(lock);
    for (auto& kernel : emu::kernels())
        if (!strcmp(kernel.name, name))
            return emu::launch(kernel.kernel, none, dim3{1, 1, 1}, threads, shared, most_shared()) ? SUCCESS : LAUNCH_FAILED;
    return NOT_FOUND;
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
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (state.lost) return state.lost;
    if (int result = fault(__func__)) return result;
    state.contexts++;
    *context = &the_context;
    return SUCCESS;
}
// With the last user, the context goes and takes along what it held.
DRIVER cuDevicePrimaryCtxRelease_v2(int) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (state.contexts == 0) return INVALID_CONTEXT;
    if (--state.contexts) return SUCCESS;
    for (auto& one : state.allocations) free(reinterpret_cast<void*>(one.first));
    for (auto& one : state.host_allocations) free(one.first);
    for (Stream* stream : state.streams) delete stream;
    state.allocations.clear(), state.host_allocations.clear(), state.registered.clear(), state.streams.clear();
    state.allocated = state.host_allocated = 0;
    state.lost = SUCCESS;
    return SUCCESS;
}
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
    GUARDED;
    if (captures()) return CAPTURE_UNSUPPORTED;
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
    GUARDED;
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
    if (int result = fault(__func__)) return result;
    // Copies that still run would write to memory that may be gone.
    auto start = static_cast<const char*>(memory);
    for (auto& [number, copy] : state.copying)
        if (copy.first < start + found->second && start < copy.first + copy.second) return state.lost = LAUNCH_FAILED;
    // It must still be there.
    volatile char* first = static_cast<char*>(memory);
    first[0] = first[0], first[found->second - 1] = first[found->second - 1];
    state.registered.erase(found);
    return SUCCESS;
}
// Puts a copy behind a stream's work. It reads and writes when it runs, and not before.
int copy_later(void* stream, void* to, const void* from, size_t bytes, const void* host) {
    auto* one = static_cast<Stream*>(stream);
    auto& queue = one->capture ? one->capture->work : one->queue;
    const long number = state.copies++;
    if (!one->capture) state.copying[number] = {static_cast<const char*>(host), bytes};
    queue.push_back([=]() -> Result {
        memcpy(to, from, bytes);
        state.copying.erase(number);
        return SUCCESS;
    });
    return SUCCESS;
}
DRIVER cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void* stream) {
    GUARDED;
    if (!inside(to, bytes)) return INVALID_VALUE;
    return copy_later(stream, reinterpret_cast<void*>(to), from, bytes, from);
}
DRIVER cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void* stream) {
    GUARDED;
    if (!inside(from, bytes)) return INVALID_VALUE;
    state.fetched += static_cast<long>(bytes);
    if (is_registered(to, bytes)) state.fetched_locked += static_cast<long>(bytes);
    return copy_later(stream, to, reinterpret_cast<const void*>(from), bytes, to);
}

DRIVER cuStreamCreate(void** stream, unsigned) {
    GUARDED;
    auto* made = new Stream;
    state.streams.push_back(made);
    *stream = made;
    return SUCCESS;
}
DRIVER cuStreamDestroy_v2(void* stream) {
    GUARDED;
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
    one->captured_by = std::this_thread::get_id();
    return SUCCESS;
}
DRIVER cuStreamEndCapture(void* stream, void** graph) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    auto* one = static_cast<Stream*>(stream);
    *graph = one->capture;
    one->capture = nullptr;
    int result = state.lost ? state.lost : fault(__func__);
    // A capture that became invalid gives no graph.
    if (result) {
        delete static_cast<Graph*>(*graph);
        *graph = nullptr;
    }
    return result;
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
    GUARDED;
    if (captures()) return CAPTURE_UNSUPPORTED;
    delete static_cast<Module*>(module);
    return SUCCESS;
}
DRIVER cuModuleGetFunction(void** function, void* module, const char* name) {
    GUARDED;
    for (auto& kernel : emu::kernels())
        if (!strcmp(kernel.name, name)) {
            state.lookups++;
            auto& slot = static_cast<Module*>(module)->functions[name];
            if (!slot) slot.reset(new Function{&kernel});
            *function = slot.get();
            return SUCCESS;
        }
    return NOT_FOUND;
}
// Of the tensor maps that there are: matrices of f16 in tiles with the 128-byte swizzle, of which what is outside comes as zeros.
// Refused is what the driver refuses (CUDA Driver API, cuTensorMapEncodeTiled).
DRIVER cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* base, const unsigned long long* dims,
                              const unsigned long long* strides, const unsigned* box, const unsigned* steps, int interleave,
                              int swizzle, int promotion, int fill) {
    GUARDED;
    constexpr int FLOAT16 = 6, SWIZZLE_128B = 3, MOST_PROMOTION = 3;
    constexpr unsigned BYTES = 2;
    if (type != FLOAT16 || rank != 2 || interleave || swizzle != SWIZZLE_128B || fill) return NOT_SUPPORTED;
    auto aligned = [](const void* address, size_t to) { return reinterpret_cast<uintptr_t>(address) % to == 0; };
    if (!map || !aligned(map, 64) || !base || !aligned(base, 16)) return INVALID_VALUE;
    for (unsigned i = 0; i < rank; i++) {
        if (dims[i] == 0 || dims[i] > 1ull << 32 || box[i] == 0 || box[i] > 256) return INVALID_VALUE;
        if (steps[i] == 0 || steps[i] > 8) return INVALID_VALUE;
    }
    if (steps[1] != 1) return NOT_SUPPORTED;
    if (strides[0] % 16 || strides[0] >= 1ull << 40 || strides[0] < dims[0] * BYTES) return INVALID_VALUE;
    if (box[0] * BYTES % 16 || box[0] * BYTES > 128) return INVALID_VALUE;
    if (promotion < 0 || promotion > MOST_PROMOTION) return INVALID_VALUE;
    emu::TensorMap made{};
    made.tag = emu::TensorMap::TAG;
    made.base = static_cast<const unsigned char*>(base);
    made.columns = dims[0], made.rows = dims[1], made.row_bytes = strides[0];
    made.box_columns = box[0], made.box_rows = box[1], made.element_bytes = BYTES;
    memcpy(map, &made, sizeof(made));
    state.tensor_maps++;
    return SUCCESS;
}
DRIVER cuFuncSetAttribute(void* function, int attribute, int value) {
    GUARDED;
    if (attribute != 8 || value < 0 || static_cast<unsigned>(value) > most_shared()) return INVALID_VALUE;
    state.attributes++;
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
    auto* stream = static_cast<Stream*>(config->stream);
    for (unsigned i = 0; i < config->attribute_count; i++) {
        const LaunchAttribute& attribute = config->attributes[i];
        if (attribute.id != PROGRAMMATIC_STREAM_SERIALIZATION) return INVALID_VALUE;
        if (!attribute.value.word) continue;
        // Edges of graphs have data from this version on.
        if (stream->capture && setting("driver") < 12030) return CAPTURE_UNSUPPORTED;
        (stream->capture ? state.overlapping_captured : state.overlapping)++;
    }
    // Arrays of the kernel count, too; they are known when it has run.
    const unsigned most = one->dynamic_limit > SHARED ? most_shared() : SHARED;
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
        return emu::launch(kernel.kernel, aligned, blocks, size, shared, most) ? SUCCESS : LAUNCH_FAILED;
    };
    auto& queue = stream->capture ? stream->capture->work : stream->queue;
    queue.push_back(work);
    return SUCCESS;
}
