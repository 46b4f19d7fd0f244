/* A stand-in for libcuda.so.1 on host memory, for machines without a GPU.
 *
 * It is stricter than a fast GPU. Queued work is deferred: it runs, in order, when somebody waits
 * for it or has asked an event a third time, so that results read without waiting are stale. Fresh
 * device memory holds 0xCD and freed memory 0xFF. Every call wants the right context in its
 * thread, and copies want live device memory and page-locked host memory. The device has an address
 * of its own for mapped host memory, as cuda.h allows, and knows no other. No device reaches the
 * memory of another one. There are no locks. What a stream waits for on another one runs when its turn
 * comes. Kernels come as PTX, which is read for its version, its
 * target and its names, and run from their source (fake_kernels.cpp). The nodes of a graph that was
 * made by hand run in the latest order that their dependencies allow.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

typedef int R; /* CUresult */
typedef uint64_t Address;
typedef void (*HostFunction)(void *);
enum { OK, INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED, NO_DEVICE = 100, INVALID_DEVICE,
       INVALID_CONTEXT = 201, INVALID_HANDLE = 400, ILLEGAL_STATE, NOT_FOUND = 500, NOT_READY = 600,
       NO_BINARY = 209, INVALID_PTX = 218, UNSUPPORTED_PTX = 222, ILLEGAL_ADDRESS = 700,
       LAUNCH_FAILED = 719, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED,
       CAPTURE_WRONG_THREAD = 908 };
static const struct { R code; const char *name, *text; } ERRORS[] = {
    {OK, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed now"},
    {NO_BINARY, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available"},
    {INVALID_PTX, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {UNSUPPORTED_PTX, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "not permitted in a capture"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "an earlier error in a capture"},
    {CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "capture of another thread"},
};

typedef struct Event Event;
typedef struct Work Work;
typedef struct { Work *graph; unsigned value, initial; int used; } Condition;
typedef struct { enum { COPY, CALL, MARK, KERNEL, CHILD, IF, RESET, WAIT } kind; void *to; const void *from; size_t size;
                 HostFunction call; void *data; const char *kernel; unsigned sizes[6];
                 Work *inner; Condition *condition; uint64_t after; } Op;
struct Work { Op *ops; size_t count; int uploaded, by_hand; };
typedef struct { Work *graph; size_t index; } *Node;
size_t kernel_argument(const char *name);
void run_kernel(const char *name, const void *argument, const unsigned *sizes);
typedef struct Stream { Work queued, captured; size_t done; int capturing, invalid;
                        int64_t busy; void *thread, *context; struct Stream *next; } Stream;
struct Event { Stream *stream; size_t upto; int asked, sleeps; int64_t ready; };
typedef struct Block { struct Block *next; char *start, *mapped; size_t size; int host, live; void *context; } Block;
enum { DEVICE_BLOCKS, HOST_BLOCKS, STREAMS, EVENTS, GRAPHS, EXECS, CONTEXTS, MODULES, COUNTS };

static int host_nodes, deaf, idle, launches, counts[COUNTS], copies, late_uploads, initialized, gpus, processors = 8, integrated, major, minor, version, fail_code, fail_after;
static char gpu_name[100], second_name[100], fail_name[64];
static size_t total, used;
static int64_t pace, wake_up; /* nanoseconds; see fake_set_pace */
static Stream *streams, defaults[2]; /* all that were made; the legacy default and the thread's own */
static R sticky; /* an error of queued work: every later call reports it, as on a GPU */
static Block *blocks;
static char primary[8]; /* one for each device: the address is the context's handle */
static __thread void *contexts[16];
static __thread int depth;
static __thread Stream *capture; /* what this thread captures */
static __thread char this_thread; /* its address tells threads apart */

static R enter(const char *name, int wants_context) {
    if (strcmp(name, fail_name) == 0 && fail_after-- <= 0) return fail_code;
    if (!initialized) return NOT_INITIALIZED;
    if (!wants_context) return OK;
    char *current = depth ? contexts[depth - 1] : NULL;
    if (!counts[CONTEXTS] || current < primary || current >= primary + 8) return INVALID_CONTEXT;
    return sticky;
}
#define ENTER(name, wants) R r_ = enter(#name, wants); if (r_) return r_
/* These may not run in a thread that captures, and spoil what it captures. */
#define NOT_CAPTURING() if (capture) return capture->invalid = 1, CAPTURE_UNSUPPORTED

/* Knobs for tests. */
void fake_reset(void) {
    memset(counts, 0, sizeof counts);
    capture = NULL, initialized = 0, gpus = 1, major = 8, minor = 7, version = 12060, sticky = OK;
    strcpy(gpu_name, "Fake Orin"), second_name[0] = 0, processors = 8, integrated = 0, fail_name[0] = 0, total = (size_t)8 << 30, used = 0;
    copies = late_uploads = host_nodes = deaf = idle = launches = 0, pace = wake_up = 0;
    streams = NULL, memset(defaults, 0, sizeof defaults);
    for (; blocks; ) {
        Block *b = blocks;
        blocks = b->next;
        if (b->mapped) munmap(b->start, b->size), munmap(b->mapped, b->size);
        else free(b->start);
        free(b);
    }
}
__attribute__((constructor)) static void start(void) { fake_reset(); }
void fake_fail(const char *name, int code, int after) {
    snprintf(fail_name, sizeof fail_name, "%s", name), fail_code = code, fail_after = after;
}
void fake_set_device(const char *name, int new_major, int new_minor) {
    snprintf(gpu_name, sizeof gpu_name, "%s", name), major = new_major, minor = new_minor;
}
void fake_set_second(const char *name) { snprintf(second_name, sizeof second_name, "%s", name); }
/* The device that the CUDA runtime, and TensorRT with it, would use in this thread. */
int fake_current(void) { return depth ? (int)((char *)contexts[depth - 1] - primary) : 0; }
void fake_set_processors(int count) { processors = count; }

void fake_set_integrated(int value) { integrated = value; }
void fake_set_driver(int new_version, int new_gpus) { version = new_version, gpus = new_gpus; }
/* Work before an event takes this long, and who sleeps until then wakes that much later. */
void fake_set_pace(int work_us, int wake_up_us) { pace = work_us * 1000LL, wake_up = wake_up_us * 1000LL; }
void fake_set_memory(size_t size) { total = size; }
void fake_counts(int *out) { memcpy(out, counts, sizeof counts); }

/* Driver and device */
R cuInit(unsigned flags) {
    (void)flags;
    if (!gpus) return NO_DEVICE;
    initialized = 1;
    R r = enter("cuInit", 0);
    if (r) initialized = 0;
    return r;
}
R cuDriverGetVersion(int *out) { return *out = version, OK; }
R cuDeviceGetCount(int *out) { return *out = gpus, OK; }
R cuDeviceGet(int *out, int i) { return i < 0 || i >= gpus ? INVALID_DEVICE : (*out = i, OK); }
R cuDeviceGetName(char *s, int n, int d) {
    return snprintf(s, n, "%s", d && second_name[0] ? second_name : gpu_name), OK;
}
R cuDeviceGetPCIBusId(char *s, int n, int d) {
    return snprintf(s, n, "0000:%02x:00.0", d ? 0x01 : 0x65), OK; /* NVML begins with the other */
}
R cuDeviceGetAttribute(int *out, int attribute, int device) {
    return (void)device, *out = attribute == 75 ? major : attribute == 76 ? minor
        : attribute == 16 ? processors : attribute == 18 ? integrated : 0, OK;
}
R cuDeviceTotalMem_v2(size_t *out, int device) { return (void)device, *out = total, OK; }
static R describe(R code, const char **out, int name) {
    for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++)
        if (ERRORS[i].code == code) return *out = name ? ERRORS[i].name : ERRORS[i].text, OK;
    return *out = NULL, INVALID_VALUE;
}
R cuGetErrorName(R code, const char **out) { return describe(code, out, 1); }
R cuGetErrorString(R code, const char **out) { return describe(code, out, 0); }

/* The primary context, and each thread's stack of contexts */
R cuDevicePrimaryCtxRetain(void **out, int device) {
    ENTER(cuDevicePrimaryCtxRetain, 0);
    return counts[CONTEXTS]++, *out = primary + device, OK;
}
R cuDevicePrimaryCtxRelease_v2(int device) {
    return (void)device, counts[CONTEXTS] ? (counts[CONTEXTS]--, OK) : INVALID_CONTEXT;
}
R cuCtxGetCurrent(void **out) { return *out = depth ? contexts[depth - 1] : NULL, OK; }
R cuCtxSetCurrent(void *context) {
    ENTER(cuCtxSetCurrent, 0);
    if (depth) depth--;
    if (context) contexts[depth++] = context;
    return OK;
}
R cuCtxPushCurrent_v2(void *c) { return depth == 16 ? INVALID_VALUE : (contexts[depth++] = c, OK); }
R cuCtxPopCurrent_v2(void **c) { return depth ? (*c = contexts[--depth], OK) : INVALID_CONTEXT; }

/* Memory. A freed block stays mapped, so that late work cannot harm the process. */
static R allocate(size_t size, int host, int mapped, void **out) {
    NOT_CAPTURING();
    if (!size) return INVALID_VALUE;
    size_t rounded = (size + 255) / 256 * 256;
    if (!host && rounded > total - used) return OUT_OF_MEMORY;
    Block *b = malloc(sizeof *b);
    *b = (Block){.next = blocks, .size = rounded, .host = host, .live = 1,
                 .context = contexts[depth - 1]};
    if (mapped) { /* the same pages at two addresses */
        int file = memfd_create("mapped", 0);
        if (ftruncate(file, rounded)) return OUT_OF_MEMORY;
        b->start = mmap(NULL, rounded, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        b->mapped = mmap(NULL, rounded, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        close(file);
    } else b->start = aligned_alloc(256, rounded);
    blocks = b, *out = memset(b->start, 0xCD, rounded);
    if (!host) used += rounded;
    return counts[host ? HOST_BLOCKS : DEVICE_BLOCKS]++, OK;
}
static R release(void *start, int host) {
    NOT_CAPTURING();
    for (Block *b = blocks; b; b = b->next)
        if (b->start == start && b->live && b->host == host) {
            if (!host) used -= b->size;
            memset(b->start, 0xFF, b->size);
            return b->live = 0, counts[host ? HOST_BLOCKS : DEVICE_BLOCKS]--, OK;
        }
    return INVALID_VALUE;
}
static int holds(const void *start, size_t size, int host) {
    for (Block *b = blocks; b; b = b->next) {
        char *from = b->host && !host ? b->mapped : b->host == host ? b->start : NULL;
        int there = host || b->context == contexts[depth - 1];
        if (b->live && from && there && (char *)start >= from &&
            (char *)start + size <= from + b->size) return 1;
    }
    return 0;
}
/* For tests: whether kernels can use memory at this address. */
int fake_reaches(const void *start, size_t size) { return depth && holds(start, size, 0); }
R cuMemAlloc_v2(void **out, size_t size) { ENTER(cuMemAlloc, 1); return allocate(size, 0, 0, out); }
R cuMemFree_v2(Address start) { ENTER(cuMemFree, 1); return release((void *)start, 0); }
R cuMemHostAlloc(void **out, size_t size, int f) {
    ENTER(cuMemHostAlloc, 1); return allocate(size, 1, f & 2, out);
}
R cuMemHostGetDevicePointer_v2(void **out, void *start, unsigned flags) {
    ENTER(cuMemHostGetDevicePointer, 1);
    for (Block *b = blocks; b && !flags; b = b->next)
        if (b->start == start && b->live && b->mapped) return *out = b->mapped, OK;
    return INVALID_VALUE;
}
R cuMemFreeHost(void *start) { ENTER(cuMemFreeHost, 1); return release(start, 1); }
/* Memory that is freed, or ordinary, is known to nobody. */
R cuPointerGetAttribute(void *out, int attribute, Address address) {
    ENTER(cuPointerGetAttribute, 1);
    char *at = (char *)address;
    for (Block *b = blocks; b; b = b->next) {
        int mapped = b->mapped && at >= b->mapped && at < b->mapped + b->size;
        if (!b->live || !(mapped || (at >= b->start && at < b->start + b->size))) continue;
        if (attribute == 2) return *(unsigned *)out = b->host ? 1 : 2, OK;
        if (attribute == 9) return *(int *)out = (char *)b->context - primary, OK;
        if (b->host && !mapped) at = b->mapped ? b->mapped + (at - b->start) : NULL;
        int there = at && b->context == contexts[depth - 1];
        return attribute == 3 && there ? (*(char **)out = at, OK) : INVALID_VALUE;
    }
    return INVALID_VALUE;
}
R cuMemGetInfo_v2(size_t *available, size_t *all) {
    ENTER(cuMemGetInfo, 1);
    return *available = total - used, *all = total, OK;
}

/* Queued work */
static void append(Work *work, Op op) {
    work->ops = realloc(work->ops, (work->count + 1) * sizeof op);
    work->ops[work->count++] = op;
}
static Stream *named(Stream *s) { return s == (Stream *)1 || s == (Stream *)2 ? &defaults[s == (Stream *)2] : s; }
static R queue(Stream *s, Op op) {
    if (!s) return INVALID_HANDLE; /* by this name the default stream is never used */
    s = named(s);
    if (s->context && s->context != contexts[depth - 1]) return INVALID_CONTEXT;
    if (s->invalid) return CAPTURE_INVALIDATED;
    return append(s->capturing ? &s->captured : &s->queued, op), OK;
}
/* Whether a kernel may use every address among its arguments. */
static int fits(const Op *op) {
    for (size_t i = 0; i + 8 <= op->size; i += 8) {
        char *address = *(char **)((char *)op->data + i);
        for (Block *b = blocks; b; b = b->next)
            if (address >= b->start && address < b->start + b->size && !holds(address, 1, 0)) return 0;
    }
    return 1;
}
static R run(Stream *s, size_t upto);
static void perform(const Op *op) {
    if (sticky) return;
    if (op->kind == WAIT) run(op->data, op->size);
    if (op->kind == CALL) op->call(op->data);
    if (op->kind == RESET) op->condition->value = op->condition->initial;
    if (op->kind == IF && op->condition->value)
        for (size_t i = 0; i < op->inner->count; i++) perform(op->inner->ops + i);
    if (op->kind == KERNEL) {
        if (idle) return;
        if (fits(op)) run_kernel(op->kernel, op->data, op->sizes);
        else sticky = ILLEGAL_ADDRESS;
    }
    if (op->kind != COPY) return;
    int valid = (holds(op->to, op->size, 0) || holds(op->to, op->size, 1)) &&
                (holds(op->from, op->size, 0) || holds(op->from, op->size, 1));
    if (valid) memmove(op->to, op->from, op->size);
    else sticky = ILLEGAL_ADDRESS; /* freed before the copy ran */
}
static R run(Stream *s, size_t upto) {
    while (s->done < upto) {
        Op op = s->queued.ops[s->done++];
        perform(&op);
    }
    return sticky;
}
int fake_copies(void) { return copies; } /* asked for between host and device */
static R copy(void *to, int to_host, const void *from, int from_host, size_t size, Stream *s) {
    copies += to_host != from_host;
    if (!holds(to, size, to_host) || !holds(from, size, from_host)) return INVALID_VALUE;
    return queue(s, (Op){.kind = COPY, .to = to, .from = from, .size = size});
}
#define COPIES(name, to_host, from_host) \
    R name##_v2(void *to, const void *from, size_t size, Stream *s) { \
        ENTER(name, 1); return copy(to, to_host, from, from_host, size, s); }
COPIES(cuMemcpyHtoDAsync, 0, 1)
COPIES(cuMemcpyDtoHAsync, 1, 0)
COPIES(cuMemcpyDtoDAsync, 0, 0)
R cuLaunchHostFunc(Stream *s, HostFunction call, void *data) {
    ENTER(cuLaunchHostFunc, 1);
    return queue(s, (Op){.kind = CALL, .call = call, .data = data});
}
R cuStreamCreate(Stream **out, unsigned flags) {
    ENTER(cuStreamCreate, 1);
    if (flags != 1) return INVALID_VALUE; /* only non-blocking streams are wanted */
    *out = calloc(1, sizeof **out), (*out)->context = contexts[depth - 1];
    (*out)->next = streams, streams = *out;
    return counts[STREAMS]++, OK;
}
R cuStreamDestroy_v2(Stream *s) {
    ENTER(cuStreamDestroy, 1);
    run(s, s->queued.count);
    if (capture == s) capture = NULL;
    free(s->queued.ops), free(s->captured.ops); /* the rest stays, for who waits for it */
    s->queued = s->captured = (Work){0}, s->done = SIZE_MAX, s->context = primary + 8;
    return counts[STREAMS]--, OK;
}
R cuStreamSynchronize(Stream *s) {
    ENTER(cuStreamSynchronize, 1);
    if (s->capturing) return s->invalid = 1, CAPTURE_UNSUPPORTED;
    return run(s, s->queued.count);
}
R cuCtxSynchronize(void) {
    ENTER(cuCtxSynchronize, 1);
    NOT_CAPTURING();
    for (size_t i = 0; i < 2; i++) run(defaults + i, defaults[i].queued.count);
    for (Stream *s = streams; s; s = s->next)
        if (s->context == contexts[depth - 1]) run(s, s->queued.count);
    return sticky;
}
R cuEventCreate(Event **out, unsigned flags) {
    ENTER(cuEventCreate, 1);
    if (!(flags & 2)) return INVALID_VALUE; /* timing is never wanted: it makes waits slower */
    return *out = calloc(1, sizeof **out), (*out)->sleeps = flags & 1, counts[EVENTS]++, OK;
}
R cuEventDestroy_v2(Event *e) { ENTER(cuEventDestroy, 1); return free(e), counts[EVENTS]--, OK; }
static int64_t now_ns(void) {
    struct timespec t;
    return clock_gettime(CLOCK_MONOTONIC, &t), t.tv_sec * 1000000000LL + t.tv_nsec;
}
R cuEventRecord(Event *e, Stream *s) {
    ENTER(cuEventRecord, 1);
    if (s) s = named(s);
    R r = queue(s, (Op){.kind = MARK});
    if (r || s->capturing) return r;
    if (pace) s->busy = (s->busy > now_ns() ? s->busy : now_ns()) + pace;
    return *e = (Event){s, s->queued.count, 0, e->sleeps, s->busy}, OK;
}
R cuStreamWaitEvent(Stream *s, Event *e, unsigned flags) {
    ENTER(cuStreamWaitEvent, 1);
    if (flags || !e->stream) return INVALID_VALUE;
    return e->stream->done >= e->upto ? OK : queue(s, (Op){.kind = WAIT, .data = e->stream, .size = e->upto});
}
R cuEventQuery(Event *e) {
    ENTER(cuEventQuery, 1);
    NOT_CAPTURING();
    if (!e->stream || e->stream->done >= e->upto) return OK;
    if (pace) return now_ns() < e->ready ? NOT_READY : run(e->stream, e->upto);
    return ++e->asked < 3 ? NOT_READY : run(e->stream, e->upto);
}
R cuEventSynchronize(Event *e) {
    ENTER(cuEventSynchronize, 1);
    NOT_CAPTURING();
    int64_t until = pace ? e->ready + (e->sleeps ? wake_up : 0) : 0;
    struct timespec at = {until / 1000000000, until % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR) ;
    return e->stream ? run(e->stream, e->upto) : OK;
}

/* Capture and graphs */
R cuStreamBeginCapture_v2(Stream *s, int mode) {
    ENTER(cuStreamBeginCapture, 1);
    if (mode != 1) return INVALID_VALUE; /* only the thread-local mode leaves other threads alone */
    if (s->capturing || capture) return ILLEGAL_STATE;
    s->capturing = 1, s->invalid = 0, s->thread = &this_thread, s->captured = (Work){0};
    return capture = s, OK;
}
R cuStreamEndCapture(Stream *s, Work **out) {
    R failed = enter("cuStreamEndCapture", 1);
    if (failed && s->capturing) /* a capture that fails ends */
        s->capturing = s->invalid = 0, capture = NULL, free(s->captured.ops), s->captured = (Work){0};
    if (failed) return failed;
    *out = NULL;
    if (!s->capturing) return ILLEGAL_STATE;
    if (s->thread != &this_thread) return CAPTURE_WRONG_THREAD;
    int invalid = s->invalid;
    s->capturing = s->invalid = 0, capture = NULL;
    if (invalid) return free(s->captured.ops), s->captured = (Work){0}, CAPTURE_INVALIDATED;
    *out = malloc(sizeof **out), **out = s->captured, s->captured = (Work){0};
    return counts[GRAPHS]++, OK;
}
/* Append a graph's work in the order it runs: by hand, what was added last comes first. */
static R flatten(Work *graph, Work *out, Work *resets) {
    uint64_t done = 0, all = graph->count == 64 ? ~0ULL : (1ULL << graph->count) - 1;
    for (size_t step = 0; step < graph->count; step++) {
        size_t i = step;
        if (graph->by_hand) {
            for (i = graph->count; i-- && (done >> i & 1 || graph->ops[i].after & ~done); ) ;
            if (i >= graph->count) return INVALID_VALUE;
            done |= 1ULL << i;
        }
        Op op = graph->ops[i];
        R r = OK;
        if (op.kind == CHILD) r = flatten(op.inner, out, resets);
        else if (op.kind == IF) {
            Work *body = calloc(1, sizeof *body);
            r = flatten(op.inner, body, resets), op.inner = body;
            append(resets, (Op){.kind = RESET, .condition = op.condition});
            append(out, op);
        } else append(out, op);
        if (r) return r;
    }
    return graph->by_hand && done != all ? INVALID_VALUE : OK;
}
R cuGraphInstantiateWithFlags(Work **out, Work *graph, unsigned long long flags) {
    ENTER(cuGraphInstantiate, 1);
    Work *made = calloc(1, sizeof *made), rest = {0};
    R r = flags ? INVALID_VALUE : flatten(graph, &rest, made);
    if (r) return r;
    for (size_t i = 0; i < rest.count; i++) append(made, rest.ops[i]);
    return free(rest.ops), *out = made, counts[EXECS]++, OK;
}
static R discard(Work *g, int kind) { return free(g->ops), free(g), counts[kind]--, OK; }
R cuGraphDestroy(Work *g) { ENTER(cuGraphDestroy, 0); return discard(g, GRAPHS); }
R cuGraphExecDestroy(Work *g) { ENTER(cuGraphExecDestroy, 0); return discard(g, EXECS); }
R cuGraphUpload(Work *g, Stream *s) {
    ENTER(cuGraphUpload, 1);
    NOT_CAPTURING();
    return s ? (g->uploaded = 1, OK) : INVALID_HANDLE;
}
int fake_late_uploads(void) { return late_uploads; } /* launches that had to do it first */
R cuGraphLaunch(Work *g, Stream *s) {
    ENTER(cuGraphLaunch, 1);
    R r = OK;
    launches++, late_uploads += !g->uploaded, g->uploaded = 1;
    for (size_t i = 0; i < g->count && !r; i++) r = queue(s, g->ops[i]);
    return r;
}

/* Graphs made by hand, and conditional nodes (cuda.h, CUgraphNodeParams) */
typedef struct { int type, reserved0[3];
    union {
        long long reserved1[29];
        struct { const char *function; unsigned sizes[6], shared; void **arguments, **extra, *kernel, *context; } kernel;
        struct { Work *graph; int ownership; } child;
        struct { Condition *condition; int type; unsigned size; Work **bodies; void *context; } conditional;
    };
    long long reserved2; } NodeParams;
_Static_assert(sizeof(NodeParams) == 256, "as in cuda.h");
static const int NODE_TYPES[] = {[COPY] = 1, [CALL] = 0, [MARK] = 7, [KERNEL] = 0, [CHILD] = 4, [IF] = 13};
int fake_launches(void) { return launches; } /* of graphs */
void fake_set_deaf(int value) { deaf = value; } /* no kernel sets a condition */
void fake_set_idle(int value) { idle = value; } /* no kernel does anything */
void fake_set_host_nodes(int value) { host_nodes = value; } /* what it calls is no kernel */

R cuGraphCreate(Work **out, unsigned flags) {
    ENTER(cuGraphCreate, 1);
    if (flags) return INVALID_VALUE;
    *out = calloc(1, sizeof **out), (*out)->by_hand = 1;
    return counts[GRAPHS]++, OK;
}
R cuGraphConditionalHandleCreate(Condition **out, Work *graph, void *context, unsigned initial, unsigned flags) {
    ENTER(cuGraphConditionalHandleCreate, 1);
    if (version < 12040) return NOT_SUPPORTED;
    if (!graph->by_hand || context != contexts[depth - 1] || flags != 1) return INVALID_VALUE;
    *out = calloc(1, sizeof **out), **out = (Condition){.graph = graph, .value = 0xCD, .initial = initial};
    return OK;
}
void cudaGraphSetConditional(unsigned long long handle, unsigned value) {
    if (!deaf) ((Condition *)handle)->value = value;
}
static Op kernel_op(const char *function, const unsigned *sizes, void **arguments) {
    Op op = {.kind = KERNEL, .kernel = function, .size = kernel_argument(function)};
    memcpy(op.sizes, sizes, sizeof op.sizes);
    op.data = memcpy(malloc(op.size), arguments[0], op.size);
    return op;
}
R cuGraphAddNode_v2(Node *out, Work *graph, const Node *after, const void *edges, size_t count, NodeParams *p) {
    ENTER(cuGraphAddNode, 1);
    int zeros = !(p->reserved0[0] | p->reserved0[1] | p->reserved0[2] | p->reserved2);
    if (!graph->by_hand || graph->count == 64 || edges || !zeros) return INVALID_VALUE;
    Op op = {0};
    if (p->type == 0) {
        if (p->kernel.shared || p->kernel.extra) return INVALID_VALUE;
        op = kernel_op(p->kernel.function, p->kernel.sizes, p->kernel.arguments);
    } else if (p->type == 4) {
        Work *copy = calloc(1, sizeof *copy); /* it may be destroyed before this graph */
        for (size_t i = 0; i < p->child.graph->count; i++) {
            if (p->child.graph->ops[i].kind == IF) return INVALID_VALUE;
            append(copy, p->child.graph->ops[i]);
        }
        if (p->child.ownership) return INVALID_VALUE;
        copy->by_hand = p->child.graph->by_hand, op = (Op){.kind = CHILD, .inner = copy};
    } else if (p->type == 13) {
        Condition *condition = p->conditional.condition;
        if (condition->graph != graph || condition->used++) return INVALID_VALUE;
        if (p->conditional.type || p->conditional.size != 1 || p->conditional.context != contexts[depth - 1])
            return INVALID_VALUE;
        Work *body = calloc(1, sizeof *body);
        body->by_hand = 1, op = (Op){.kind = IF, .inner = body, .condition = condition};
        p->conditional.bodies = calloc(1, sizeof(Work *)), p->conditional.bodies[0] = body;
    } else return INVALID_VALUE;
    for (size_t i = 0; i < count; i++) {
        if (after[i]->graph != graph) return INVALID_VALUE;
        op.after |= 1ULL << after[i]->index;
    }
    append(graph, op);
    *out = malloc(sizeof **out), (*out)->graph = graph, (*out)->index = graph->count - 1;
    return OK;
}
R cuGraphGetNodes(Work *graph, Node *out, size_t *count) {
    ENTER(cuGraphGetNodes, 1);
    for (size_t i = 0; out && i < *count && i < graph->count; i++)
        out[i] = malloc(sizeof **out), out[i]->graph = graph, out[i]->index = i;
    return *count = graph->count, OK;
}
R cuGraphNodeGetType(Node node, int *out) {
    ENTER(cuGraphNodeGetType, 1);
    int kind = node->graph->ops[node->index].kind;
    return *out = kind == CALL && host_nodes ? 3 : NODE_TYPES[kind], OK;
}
R cuGraphChildGraphNodeGetGraph(Node node, Work **out) {
    ENTER(cuGraphChildGraphNodeGetGraph, 1);
    return *out = node->graph->ops[node->index].inner, OK;
}

/* Modules of kernels */
static int driver_reads(int ptx_major, int ptx_minor) { /* the PTX ISA of a driver: its release notes */
    int minor = version % 1000 / 10, newest = version >= 13000 ? 90 : version < 12000 ? 70 + minor
        : 80 + (minor < 6 ? minor : minor - 1);
    return ptx_major * 10 + ptx_minor <= newest;
}
R cuModuleLoadData(char **out, const char *ptx) {
    ENTER(cuModuleLoadData, 1);
    NOT_CAPTURING();
    int isa, isa_minor, target;
    const char *version_line = strstr(ptx, "\n.version "), *target_line = strstr(ptx, "\n.target sm_");
    if (!version_line || !target_line || !strstr(ptx, "\n.address_size 64")) return INVALID_PTX;
    sscanf(version_line, "\n.version %d.%d", &isa, &isa_minor), sscanf(target_line, "\n.target sm_%d", &target);
    if (!driver_reads(isa, isa_minor)) return UNSUPPORTED_PTX;
    if (target > major * 10 + minor) return NO_BINARY;
    return *out = strdup(ptx), counts[MODULES]++, OK;
}
R cuModuleGetFunction(const char **out, char *module, const char *name) {
    ENTER(cuModuleGetFunction, 1);
    char entry[100];
    snprintf(entry, sizeof entry, ".visible .entry %s(", name);
    if (!strstr(module, entry) || !kernel_argument(name)) return NOT_FOUND;
    return *out = strdup(name), OK;
}
R cuModuleUnload(char *module) { ENTER(cuModuleUnload, 1); return free(module), counts[MODULES]--, OK; }
R cuLaunchKernel(const char *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                 unsigned shared, Stream *s, void **arguments, void **extra) {
    ENTER(cuLaunchKernel, 1);
    unsigned sizes[] = {gx, gy, gz, bx, by, bz};
    if (shared || extra || !gx || bx * by * bz > 1024 || bx * by * bz == 0) return INVALID_VALUE;
    return queue(s, kernel_op(function, sizes, arguments));
}

/* How NVIDIA's binding finds everything above; newest version first, as the driver does. */
R cuGetProcAddress_v2(const char *name, void **out, int wanted, uint64_t flags, int *status) {
    char newer[100];
    Dl_info self;
    (void)wanted, (void)flags, (void)status;
    dladdr(primary, &self);
    void *library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    snprintf(newer, sizeof newer, "%s_v2", name);
    if (!(*out = dlsym(library, newer))) *out = dlsym(library, name);
    dlclose(library);
    return *out ? OK : NOT_FOUND;
}
