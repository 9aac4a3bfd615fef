// The kernels by name.
#pragma once

#include "cuda.h"

// Arguments of a launch, kept.
using Arguments = std::vector<std::vector<char>>;

struct Kernel {
    const char *name;
    void (*entry)(void **);
    // Copies the arguments, as the driver does when a launch is recorded.
    Arguments (*keep)(void **);
    // How the host is to launch it: the bytes of its module's constant.
    const void *launch;
    size_t launch_bytes;
};

const Kernel *find_kernel(const char *name);
