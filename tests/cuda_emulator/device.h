// CUDA C for the host's C++ compiler. A kernel image is TVM's CUDA source, this header before it, and one EMULATED_KERNEL
// line for each kernel after it.
#pragma once
#include <vector_functions.h>
#include <vector_types.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "fibers.h"

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(threads)

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;

namespace emulator {

constexpr size_t kMaxThreads = 1024;
constexpr size_t kMaxSharedBytes = 48 << 10;
constexpr size_t kFence = 64;  // bytes behind each shared array that no thread may touch
constexpr unsigned char kUnwritten = 0xff, kFenceByte = 0xfd;  // as float: both are NaN

static Block block;

// ---- shared memory: the arrays of a kernel one after another, a fence behind each ----

alignas(64) static char shared_memory[kMaxSharedBytes + 64 * kFence];

// The room that an array takes, with its fence.
template <class T, size_t N>
constexpr size_t room() { return (sizeof(T[N]) + 63) / 64 * 64 + kFence; }

template <class T, size_t N>
T (&shared_array(size_t offset))[N] { return *reinterpret_cast<T (*)[N]>(shared_memory + offset); }

struct SharedArray { size_t offset, bytes; };

static void clear_shared(const SharedArray* arrays, int count) {
  for (int i = 0; i < count; i++) {
    memset(shared_memory + arrays[i].offset, kUnwritten, arrays[i].bytes);
    memset(shared_memory + arrays[i].offset + arrays[i].bytes, kFenceByte, kFence);
  }
}

static bool fences_stand(const SharedArray* arrays, int count) {
  for (int i = 0; i < count; i++) {
    const char* fence = shared_memory + arrays[i].offset + arrays[i].bytes;
    for (size_t byte = 0; byte < kFence; byte++) {
      if (static_cast<unsigned char>(fence[byte]) != kFenceByte) return false;
    }
  }
  return true;
}

// ---- launching ----

static void (*kernel)(void**);
static void** kernel_arguments;

template <class... Parameters, size_t... I>
void call(void (*function)(Parameters...), void** arguments, std::index_sequence<I...>) {
  function(*static_cast<Parameters*>(arguments[I])...);
}

template <class... Parameters>
void call(void (*function)(Parameters...), void** arguments) {
  call(function, arguments, std::index_sequence_for<Parameters...>{});
}

template <class... Parameters>
int parameter_sizes(void (*)(Parameters...), size_t* sizes) {
  int count = 0;
  ((sizes[count++] = sizeof(Parameters)), ...);
  return count;
}

struct KernelFacts {
  size_t max_threads;  // of __launch_bounds__
  bool waits;          // has a barrier, a shuffle or shared memory: its threads must be fibers
  const SharedArray* shared;
  int shared_count;
};

static const char* run_block(const KernelFacts& facts) {
  if (facts.waits) {
    clear_shared(facts.shared, facts.shared_count);
    if (const char* error = block.run()) return error;
    return fences_stand(facts.shared, facts.shared_count) ? nullptr : "a thread wrote behind the end of a shared array";
  }
  for (threadIdx.z = 0; threadIdx.z < blockDim.z; threadIdx.z++)
    for (threadIdx.y = 0; threadIdx.y < blockDim.y; threadIdx.y++)
      for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++) kernel(kernel_arguments);
  return nullptr;
}

static const char* launch(void (*function)(void**), void** arguments, const unsigned* grid, const KernelFacts& facts) {
  gridDim = dim3(grid[0], grid[1], grid[2]), blockDim = dim3(grid[3], grid[4], grid[5]);
  const size_t threads = size_t(blockDim.x) * blockDim.y * blockDim.z;
  if (!threads || threads > kMaxThreads) return "invalid configuration: the device takes 1 to 1024 threads a block";
  if (threads > facts.max_threads) return "invalid configuration: more threads than the kernel's launch bounds";
  size_t shared_bytes = 0;
  for (int i = 0; i < facts.shared_count; i++) shared_bytes += facts.shared[i].bytes;
  if (shared_bytes > kMaxSharedBytes) return "invalid configuration: more than 48 KiB of shared memory";
  kernel = function, kernel_arguments = arguments;
  if (facts.waits) {
    block.thread_body = [] { kernel(kernel_arguments); };
    block.on_switch = [](const Fiber& fiber) { threadIdx = {fiber.x, fiber.y, fiber.z}; };
    block.prepare(blockDim.x, blockDim.y, blockDim.z);
  }
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++)
        if (const char* error = run_block(facts)) return error;
  return nullptr;
}

// ---- what the lanes of a warp exchange ----

static uint64_t exchanged[2][kMaxThreads];

// Every lane of `mask` puts down `value` and takes what `source` (a lane, or -1 for itself) put down.
// Two slots in turn: a lane that runs ahead to the next shuffle does not overwrite what a slower one has yet to read.
template <class T>
T exchange(uint32_t mask, T value, int source) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  Fiber& fiber = block.fiber(block.current());
  const int me = block.current(), slot = fiber.exchange ^= 1;
  memcpy(&exchanged[slot][me], &value, sizeof(T));
  block.wait_for_warp(mask);
  const int other = source < 0 ? me : me / kWarp * kWarp + source;
  T taken;
  // A lane that is not there, or that returned, gives no value on a device: here that shows.
  if (other >= block.size() || block.fiber(other).state == State::finished) {
    memset(&taken, kUnwritten, sizeof(T));
  } else {
    memcpy(&taken, &exchanged[slot][other], sizeof(T));
  }
  return taken;
}

inline int lane() { return block.current() % kWarp; }

}  // namespace emulator

// ---- what kernels call ----

static inline void __syncthreads() { emulator::block.wait(emulator::State::at_barrier); }
static inline void __syncwarp(unsigned mask = 0xffffffffu) { emulator::block.wait_for_warp(mask); }

static inline unsigned __activemask() {
  unsigned active = 0;
  const int first = emulator::block.current() / emulator::kWarp * emulator::kWarp;
  for (int lane = 0; lane < emulator::kWarp && first + lane < emulator::block.size(); lane++) {
    active |= unsigned(emulator::block.fiber(first + lane).state != emulator::State::finished) << lane;
  }
  return active;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return emulator::exchange(mask, value, emulator::lane() / width * width + source % width);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  const int lane = emulator::lane();
  return emulator::exchange(mask, value, lane % width + int(distance) < width ? lane + int(distance) : -1);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  const int lane = emulator::lane();
  return emulator::exchange(mask, value, lane % width >= int(distance) ? lane - int(distance) : -1);
}

template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) { return a < b ? b : a; }
template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) { return b < a ? b : a; }

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __int_as_float(int bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// CUDA's fast forms. Macros, because the C library declares some of these names.
#define __expf expf
#define __exp10f(x) powf(10.0f, x)
#define __logf logf
#define __log2f log2f
#define __log10f log10f
#define __powf powf
#define __sinf sinf
#define __cosf cosf

// The functions that the driver looks up by a kernel's name.
#define EMULATED_KERNEL(name, max_threads, waits, ...)                                                                  \
  extern "C" __attribute__((visibility("default"))) const char* launch_##name(void** arguments, const unsigned* grid) { \
    static const emulator::SharedArray shared[] = {__VA_ARGS__ __VA_OPT__(, ){0, 0}};                                   \
    const emulator::KernelFacts facts{max_threads, waits, shared, int(std::size(shared)) - 1};                          \
    return emulator::launch([](void** packed) { emulator::call(name, packed); }, arguments, grid, facts);               \
  }                                                                                                                     \
  extern "C" __attribute__((visibility("default"))) int parameters_##name(size_t* sizes) {                              \
    return emulator::parameter_sizes(name, sizes);                                                                      \
  }
