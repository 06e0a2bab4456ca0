// The part of libcuda.so.1 that TVM's CUDA runtime uses: loading modules and launching their kernels.
// A module is a kernel image of emulator.py, a shared object for this machine.
#include <dlfcn.h>
#include <elf.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>

#include "device_state.h"

struct CUmod_st {
  void* image;
  std::map<std::string, std::unique_ptr<EmulatedKernel>> kernels;
};

static bool is_kernel_image(const Elf64_Ehdr* header) {
#if defined(__x86_64__)
  const int machine = EM_X86_64;
#else
  const int machine = EM_AARCH64;
#endif
  return !memcmp(header->e_ident, ELFMAG, SELFMAG) && header->e_machine == machine;
}

static bool write_all(int file, const char* data, size_t size) {
  while (size) {
    const ssize_t written = write(file, data, size);
    if (written <= 0) return false;
    data += written, size -= size_t(written);
  }
  return true;
}

// A cubin of a real GPU is refused as a device refuses machine code for another one.
EXPORTED CUresult cuModuleLoadData(CUmodule* module, const void* data) {
  const auto* header = static_cast<const Elf64_Ehdr*>(data);
  if (!is_kernel_image(header)) return CUDA_ERROR_NO_BINARY_FOR_GPU;
  // The section headers are the last thing in a linked ELF file, so they give its size.
  const size_t size = header->e_shoff + size_t(header->e_shnum) * header->e_shentsize;
  char path[] = P_tmpdir "/kernel-image-XXXXXX";
  const int file = mkstemp(path);
  const bool written = file >= 0 && write_all(file, static_cast<const char*>(data), size);
  if (file >= 0) close(file);
  void* image = written ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
  unlink(path);
  if (!image) {
    fprintf(stderr, "cuda emulator: %s\n", written ? dlerror() : "the kernel image could not be written");
    return CUDA_ERROR_INVALID_IMAGE;
  }
  *module = new CUmod_st{image, {}};
  return CUDA_SUCCESS;
}

EXPORTED CUresult cuModuleUnload(CUmodule module) {
  dlclose(module->image);
  delete module;
  return CUDA_SUCCESS;
}

EXPORTED CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  auto& kernel = module->kernels[name];
  if (!kernel) {
    void* launch = dlsym(module->image, ("launch_" + std::string(name)).c_str());
    void* parameters = dlsym(module->image, ("parameters_" + std::string(name)).c_str());
    if (!launch || !parameters) return CUDA_ERROR_NOT_FOUND;
    kernel = std::make_unique<EmulatedKernel>();
    kernel->name = name;
    kernel->launch = reinterpret_cast<decltype(kernel->launch)>(launch);
    kernel->parameters = reinterpret_cast<decltype(kernel->parameters)>(parameters);
  }
  *function = reinterpret_cast<CUfunction>(kernel.get());
  return CUDA_SUCCESS;
}

EXPORTED CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** arguments, void** extra) {
  if (extra || config->sharedMemBytes) return CUDA_ERROR_NOT_SUPPORTED;
  const unsigned grid[] = {config->gridDimX,  config->gridDimY,  config->gridDimZ,
                           config->blockDimX, config->blockDimY, config->blockDimZ};
  return emulator_launch(reinterpret_cast<EmulatedKernel*>(function), arguments, grid);
}

EXPORTED CUresult cuDeviceGetName(char* name, int length, CUdevice) {
  snprintf(name, size_t(length), "emulated CUDA device");
  return CUDA_SUCCESS;
}

// TVM puts this text into its exception, so a failed launch says which kernel did what.
EXPORTED CUresult cuGetErrorName(CUresult error, const char** name) {
  switch (error) {
    case CUDA_ERROR_NO_BINARY_FOR_GPU: *name = "CUDA_ERROR_NO_BINARY_FOR_GPU"; break;
    case CUDA_ERROR_INVALID_IMAGE: *name = "CUDA_ERROR_INVALID_IMAGE"; break;
    case CUDA_ERROR_NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; break;
    case CUDA_ERROR_NOT_SUPPORTED: *name = "CUDA_ERROR_NOT_SUPPORTED"; break;
    default: *name = emulator_failure();
  }
  return CUDA_SUCCESS;
}

EXPORTED CUresult cuGetErrorString(CUresult error, const char** text) { return cuGetErrorName(error, text); }

// For dynamic shared memory above 48 KiB and for large clusters, which this device has not.
EXPORTED CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_ERROR_NOT_SUPPORTED; }

EXPORTED CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                         const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                                         CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                         CUtensorMapFloatOOBfill) {
  return CUDA_ERROR_NOT_SUPPORTED;
}
