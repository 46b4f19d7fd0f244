/* Decides on the device whether an image stops at an exit.
 *
 * One block of 128 threads runs in a CUDA graph, behind the segment that gave the logits. If the
 * image goes on, the kernel sets the condition of the node that holds the next segment. The host
 * reads logits and decision from memory that both see, and has the last word.
 */
#define THREADS 128

/* CUDA's device runtime has this function; the driver finds it when it loads the kernel. */
extern "C" __device__ void cudaGraphSetConditional(unsigned long long handle, unsigned value);

/* How one exit decides. The host may write it at any time, also while the kernel runs. */
struct Rule {
    float threshold;
    float scale;     /* logits are multiplied by it: 1 / temperature */
    int low_is_sure; /* whether the entropy is compared, and not the confidence */
    int unused;
};

/* What an exit tells the host. */
struct Answer {
    unsigned launch; /* number of the launch that this belongs to; written last */
    unsigned goes_on;
};

struct Exit {
    const float *logits;          /* [classes], of this exit's segment */
    float *copy;                  /* [classes], where the host reads them */
    const volatile struct Rule *rule;
    volatile struct Answer *answer;
    unsigned *state;              /* [2] on the device: number of the launch; whether it goes on */
    unsigned long long next;      /* condition of the node with the next segment */
    int classes;
    int first, last;              /* whether it is exit 1; the final classifier: all stop there */
};

/* Return to every thread the sum, or the largest, of one number from each. */
static __device__ float together(float *shared, float mine, int thread, int largest)
{
    shared[thread] = mine;
    __syncthreads();
    for (int half = THREADS / 2; half; half /= 2) {
        if (thread < half) {
            float a = shared[thread], b = shared[thread + half];
            shared[thread] = largest ? (a > b ? a : b) : a + b;
        }
        __syncthreads();
    }
    float result = shared[0];
    __syncthreads(); /* before it is written again */
    return result;
}

extern "C" __global__ void decide_exit(struct Exit exit)
{
    __shared__ float shared[THREADS];
    __shared__ unsigned alive;
    int thread = threadIdx.x;
    if (thread == 0) {
        if (exit.first) {
            exit.state[0]++;
            exit.state[1] = 1;
        }
        alive = exit.state[1];
    }
    __syncthreads();
    if (!alive) return;

    float scale = exit.rule->scale;
    float top = -INFINITY;
    for (int i = thread; i < exit.classes; i += THREADS) {
        exit.copy[i] = exit.logits[i];
        float value = exit.logits[i] * scale;
        top = value > top ? value : top;
    }
    top = together(shared, top, thread, 1);
    float sum = 0, weighted = 0;
    for (int i = thread; i < exit.classes; i += THREADS) {
        float shifted = exit.logits[i] * scale - top;
        sum += expf(shifted);
        weighted += shifted > -80 ? expf(shifted) * shifted : 0; /* p log p is 0 at p = 0 */
    }
    sum = together(shared, sum, thread, 0);
    weighted = together(shared, weighted, thread, 0);
    __threadfence_system(); /* the host sees the logits before the number of the launch */
    __syncthreads();
    if (thread) return;

    float threshold = exit.rule->threshold;
    int stops = exit.last ||
        (exit.rule->low_is_sure ? logf(sum) - weighted / sum < threshold : 1 / sum > threshold);
    exit.state[1] = !stops;
    if (!stops) cudaGraphSetConditional(exit.next, 1);
    exit.answer->goes_on = !stops;
    __threadfence_system();
    exit.answer->launch = exit.state[0];
}
