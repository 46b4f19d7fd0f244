/* Runs our CUDA kernels on the CPU, from the same source as their PTX.
 *
 * Blocks run one after the other. The threads of a block are coroutines, which switch at barriers,
 * so what a barrier is missing for goes wrong every time.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

struct Place { unsigned x, y, z; };
static Place threadIdx, blockIdx, blockDim, gridDim;
static void __syncthreads();
#define __global__
#define __device__
#define __shared__ static /* blocks do not overlap */
#define __threadfence_system()

#include "exit.cu"
#include "resize.cu"

template <class T, void (*F)(T)> static void call(const void *argument) { F(*(const T *)argument); }
/* Every kernel takes one structure. */
static const struct { const char *name; size_t size; void (*run)(const void *); } KERNELS[] = {
    {"decide_exit", sizeof(Exit), call<Exit, decide_exit>},
    {"resize_image", sizeof(Resize), call<Resize, resize_image>},
};
enum { MOST = 1024, STACK = 1 << 16 };
static ucontext_t scheduler, threads[MOST];
static char *stacks;
static int ended[MOST], current;
static void (*running)(const void *);
static const void *given;

static void __syncthreads() { swapcontext(&threads[current], &scheduler); }
static void thread() { running(given); ended[current] = 1; }

static void run_block()
{
    int count = blockDim.x * blockDim.y * blockDim.z, left = count;
    for (int i = 0; i < count; i++) {
        getcontext(&threads[i]);
        threads[i].uc_stack.ss_sp = stacks + (size_t)i * STACK;
        threads[i].uc_stack.ss_size = STACK;
        threads[i].uc_link = &scheduler;
        makecontext(&threads[i], thread, 0);
        ended[i] = 0;
    }
    while (left)
        for (current = 0; current < count; current++) {
            if (ended[current]) continue;
            threadIdx = {current % blockDim.x, current / blockDim.x % blockDim.y,
                         current / blockDim.x / blockDim.y};
            swapcontext(&scheduler, &threads[current]);
            left -= ended[current];
        }
}

extern "C" size_t kernel_argument(const char *name) /* its size; 0 without such a kernel */
{
    for (auto &kernel : KERNELS)
        if (!strcmp(kernel.name, name)) return kernel.size;
    return 0;
}
extern "C" void run_kernel(const char *name, const void *argument, const unsigned *sizes)
{
    if (!stacks) stacks = (char *)malloc((size_t)MOST * STACK);
    gridDim = {sizes[0], sizes[1], sizes[2]}, blockDim = {sizes[3], sizes[4], sizes[5]};
    for (auto &kernel : KERNELS)
        if (!strcmp(kernel.name, name)) running = kernel.run;
    given = argument;
    for (unsigned z = 0; z < gridDim.z; z++)
        for (unsigned y = 0; y < gridDim.y; y++)
            for (unsigned x = 0; x < gridDim.x; x++) blockIdx = {x, y, z}, run_block();
}
