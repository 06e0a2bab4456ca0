// What the emulated driver and the emulated runtime share: the runtime owns the device's memory and launches kernels,
// the driver finds them.
#pragma once
#include <cuda.h>

#include <cstddef>
#include <string>

#define EXPORTED extern "C" __attribute__((visibility("default")))

// A kernel of a loaded image: the two functions that EMULATED_KERNEL of device.h made.
struct EmulatedKernel {
  std::string name;
  // grid: blocks in x, y, z, then threads of a block in x, y, z. Returns what went wrong, or nullptr.
  const char* (*launch)(void** arguments, const unsigned* grid);
  // Writes the size of each parameter, returns how many there are.
  int (*parameters)(size_t* sizes);
};

// Runs a kernel now, or records it while a stream is captured.
extern "C" CUresult emulator_launch(const EmulatedKernel* kernel, void** arguments, const unsigned* grid);

// The error of the last failed launch, with the kernel's name and what it did.
extern "C" const char* emulator_failure();
