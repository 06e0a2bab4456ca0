// The part of libcudart.so.13 that TVM's CUDA runtime uses. Device memory is host memory that only kernels and copies
// may touch: at any other time its pages are closed, and a buffer ends at a page that never opens.
#include <cuda_runtime_api.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include "device_state.h"

static constexpr size_t kPage = 4096, kAlignment = 256;
static constexpr unsigned char kUnwritten = 0xff;  // as float, int8 weights or indices: nothing that looks right
static constexpr size_t kDeviceMemory = size_t(8) << 30, kAddressSpace = size_t(64) << 30;

// ---- memory ----

// |closed page|slack|buffer|slack up to the alignment|closed page|: the slack stays kUnwritten.
struct Buffer {
  char* pages;
  size_t pages_size;
  size_t size;
};

static std::map<char*, Buffer> buffers;  // by the address that the user has

static size_t rounded(size_t size, size_t to) { return (size + to - 1) / to * to; }

static void set_access(int protection) {
  for (auto& [start, buffer] : buffers) mprotect(buffer.pages, buffer.pages_size, protection);
}

struct OpenMemory {
  OpenMemory() { set_access(PROT_READ | PROT_WRITE); }
  ~OpenMemory() { set_access(PROT_NONE); }
};

static bool is_unwritten(const char* from, const char* to) {
  return std::all_of(from, to, [](char byte) { return static_cast<unsigned char>(byte) == kUnwritten; });
}

static bool slack_is_untouched() {
  return std::all_of(buffers.begin(), buffers.end(), [](const auto& entry) {
    const auto& [start, buffer] = entry;
    return is_unwritten(buffer.pages, start) && is_unwritten(start + buffer.size, buffer.pages + buffer.pages_size);
  });
}

// Buffers come one after another out of addresses that nothing else has, and no address is used twice: a wrong index and
// a pointer to a freed buffer both meet a closed page.
static char* take_addresses(size_t size) {
  static char* const all = static_cast<char*>(
      mmap(nullptr, kAddressSpace, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  static size_t taken = kAddressSpace / 4;
  if (all == MAP_FAILED || taken + size > kAddressSpace / 4 * 3) return nullptr;
  char* start = all + taken;
  taken += size;
  return start;
}

EXPORTED cudaError_t cudaMalloc(void** pointer, size_t size) {
  const size_t room = rounded(size, kAlignment), pages_size = rounded(room, kPage);
  char* pages = take_addresses(pages_size + kPage);
  if (!pages || mprotect(pages, pages_size, PROT_READ | PROT_WRITE)) return cudaErrorMemoryAllocation;
  memset(pages, kUnwritten, pages_size);
  mprotect(pages, pages_size, PROT_NONE);
  char* start = pages + pages_size - room;
  buffers[start] = {pages, pages_size, size};
  *pointer = start;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaFree(void* pointer) {
  if (!pointer) return cudaSuccess;
  const auto found = buffers.find(static_cast<char*>(pointer));
  if (found == buffers.end()) return cudaErrorInvalidValue;
  madvise(found->second.pages, found->second.pages_size, MADV_DONTNEED);
  buffers.erase(found);
  return cudaSuccess;
}

EXPORTED cudaError_t cudaMallocHost(void** pointer, size_t size) {
  *pointer = aligned_alloc(kAlignment, rounded(size, kAlignment));
  return *pointer ? cudaSuccess : cudaErrorMemoryAllocation;
}

EXPORTED cudaError_t cudaFreeHost(void* pointer) {
  free(pointer);
  return cudaSuccess;
}

EXPORTED cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  *free_bytes = *total = kDeviceMemory;
  return cudaSuccess;
}

// ---- launching ----

struct Launch {
  const EmulatedKernel* kernel;
  std::vector<unsigned> grid;
  std::vector<std::vector<char>> arguments;
};

struct LaunchGraph {
  std::vector<Launch> launches;
};

static LaunchGraph* capturing = nullptr;
static std::string failure = "CUDA_ERROR_UNKNOWN";
static sigjmp_buf after_bad_access;
static char bad_access[160];

extern "C" const char* emulator_failure() { return failure.c_str(); }

// Which buffer an address that no buffer holds is nearest to.
static void on_bad_access(int, siginfo_t* signal, void*) {
  const auto* address = static_cast<const char*>(signal->si_addr);
  snprintf(bad_access, sizeof bad_access, "illegal address %p, not near any buffer", signal->si_addr);
  for (const auto& [start, buffer] : buffers) {
    if (address >= buffer.pages - kPage && address < buffer.pages + buffer.pages_size + kPage) {
      snprintf(bad_access, sizeof bad_access, "illegal address: byte %td of a buffer of %zu", address - start, buffer.size);
    }
  }
  siglongjmp(after_bad_access, 1);
}

// Catches bad accesses on a stack of its own: a fiber's may be what overflowed.
struct AccessGuard {
  struct sigaction before_segv, before_bus;
  stack_t before_stack;
  AccessGuard() {
    static char memory[64 << 10];
    stack_t stack{};
    stack.ss_sp = memory, stack.ss_size = sizeof memory;
    sigaltstack(&stack, &before_stack);
    struct sigaction action{};
    action.sa_sigaction = on_bad_access;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &before_segv);
    sigaction(SIGBUS, &action, &before_bus);
  }
  ~AccessGuard() {
    sigaction(SIGSEGV, &before_segv, nullptr);
    sigaction(SIGBUS, &before_bus, nullptr);
    sigaltstack(&before_stack, nullptr);
  }
};

static CUresult run(const EmulatedKernel* kernel, void** arguments, const unsigned* grid) {
  const OpenMemory open;
  const AccessGuard guard;
  const char* volatile error = nullptr;
  if (sigsetjmp(after_bad_access, 1)) {
    error = bad_access;
  } else {
    error = kernel->launch(arguments, grid);
  }
  if (!error && !slack_is_untouched()) error = "a thread wrote outside of a buffer";
  if (!error) return CUDA_SUCCESS;
  failure = "CUDA_ERROR_LAUNCH_FAILED in " + kernel->name + ": " + error;
  return CUDA_ERROR_LAUNCH_FAILED;
}

EXPORTED CUresult emulator_launch(const EmulatedKernel* kernel, void** arguments, const unsigned* grid) {
  if (!capturing) return run(kernel, arguments, grid);
  size_t sizes[128];
  Launch launch{kernel, {grid, grid + 6}, {}};
  for (int i = 0, count = kernel->parameters(sizes); i < count; i++) {
    const char* value = static_cast<const char*>(arguments[i]);
    launch.arguments.emplace_back(value, value + sizes[i]);
  }
  capturing->launches.push_back(std::move(launch));
  return CUDA_SUCCESS;
}

// ---- copies: a stream has done its work as soon as it has it ----

EXPORTED cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t) {
  if (capturing) return cudaErrorStreamCaptureUnsupported;
  const OpenMemory open;
  memcpy(to, from, size);
  return cudaSuccess;
}

EXPORTED cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size, cudaStream_t stream) {
  return cudaMemcpyAsync(to, from, size, cudaMemcpyDefault, stream);
}

// ---- streams and graphs ----

static cudaStream_t only_stream() { return reinterpret_cast<cudaStream_t>(&buffers); }

EXPORTED cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = only_stream();
  return cudaSuccess;
}

EXPORTED cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return cudaStreamCreate(stream); }
EXPORTED cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
EXPORTED cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
EXPORTED cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }

EXPORTED cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  if (capturing) return cudaErrorStreamCaptureUnsupported;
  capturing = new LaunchGraph;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  *graph = reinterpret_cast<cudaGraph_t>(capturing);
  capturing = nullptr;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = reinterpret_cast<cudaGraphExec_t>(new LaunchGraph(*reinterpret_cast<LaunchGraph*>(graph)));
  return cudaSuccess;
}

EXPORTED cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t) {
  for (auto& launch : reinterpret_cast<LaunchGraph*>(executable)->launches) {
    std::vector<void*> arguments;
    for (auto& value : launch.arguments) arguments.push_back(value.data());
    if (run(launch.kernel, arguments.data(), launch.grid.data()) != CUDA_SUCCESS) return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

EXPORTED cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<LaunchGraph*>(graph);
  return cudaSuccess;
}

EXPORTED cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete reinterpret_cast<LaunchGraph*>(executable);
  return cudaSuccess;
}

// ---- events ----

EXPORTED cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = reinterpret_cast<cudaEvent_t>(new timespec{});
  return cudaSuccess;
}

EXPORTED cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<timespec*>(event);
  return cudaSuccess;
}

EXPORTED cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  clock_gettime(CLOCK_MONOTONIC, reinterpret_cast<timespec*>(event));
  return cudaSuccess;
}

EXPORTED cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }

EXPORTED cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  const auto* start = reinterpret_cast<timespec*>(from);
  const auto* end = reinterpret_cast<timespec*>(to);
  *milliseconds = float(1e3 * double(end->tv_sec - start->tv_sec) + 1e-6 * double(end->tv_nsec - start->tv_nsec));
  return cudaSuccess;
}

// ---- the device ----

EXPORTED cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

EXPORTED cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  memset(properties, 0, sizeof *properties);
  properties->totalGlobalMem = kDeviceMemory;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 8; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: *value = 1024; break;
    case cudaDevAttrMaxBlockDimZ: *value = 64; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 << 10; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = 64 << 10; break;
    case cudaDevAttrMultiProcessorCount: *value = 108; break;
    default: *value = 0;
  }
  return cudaSuccess;
}

EXPORTED const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaErrorLaunchFailure: return emulator_failure();
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    default: return "cudaError";
  }
}

EXPORTED const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
EXPORTED cudaError_t cudaGetLastError() { return cudaSuccess; }
EXPORTED cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
