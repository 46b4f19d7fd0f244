/* Resizes and crops an image on the device, and writes it as the network wants it.
 *
 * The result is Pillow's, bit for bit. Pillow resizes along one axis, rounds to 8 bits, and resizes
 * along the other; weights are in units of 1 / 2**22. A thread computes one pixel of the result. It
 * computes the pixels in between anew instead of storing them: few results need the same one.
 */
#define BITS 22
#define HALF (1 << (BITS - 1)) /* added to a sum, so that the shift rounds */

/* An axis: rows or columns. */
struct Axis {
    /* [2 + most, size], for each place in the result: the first place in the source, how many there
     * are, and their weights. */
    const int *weights;
    long long step; /* bytes from one place in the source to the next */
};

struct Resize {
    const unsigned char *source; /* first pixel */
    void *target;                /* [size, size, 3] of 8 bits, or [3, size, size] float */
    const float *values; /* [3, 256], what each level becomes; null for a target of 8 bits */
    struct Axis first, second;  /* in the order in which Pillow resizes */
    long long red, green, blue; /* bytes from a pixel's start */
    int size;                   /* of both sides of the result */
    int rows_first;             /* whether the first axis is that of rows */
};

static __device__ int rounded(int sum)
{
    sum >>= BITS;
    return sum < 0 ? 0 : sum > 255 ? 255 : sum;
}

extern "C" __global__ void resize_image(struct Resize given)
{
    int size = given.size;
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= size || y >= size) return;
    const int *first = given.first.weights + (given.rows_first ? y : x);
    const int *second = given.second.weights + (given.rows_first ? x : y);
    const unsigned char *start =
        given.source + first[0] * given.first.step + second[0] * given.second.step;
    int red = HALF, green = HALF, blue = HALF;
    for (int j = 0; j < second[size]; j++) {
        const unsigned char *pixel = start + j * given.second.step;
        int line_red = HALF, line_green = HALF, line_blue = HALF;
        for (int i = 0; i < first[size]; i++) {
            int weight = first[(2 + i) * size];
            line_red += pixel[given.red] * weight;
            line_green += pixel[given.green] * weight;
            line_blue += pixel[given.blue] * weight;
            pixel += given.first.step;
        }
        int weight = second[(2 + j) * size];
        red += rounded(line_red) * weight;
        green += rounded(line_green) * weight;
        blue += rounded(line_blue) * weight;
    }
    red = rounded(red), green = rounded(green), blue = rounded(blue);
    if (given.values) {
        float *target = (float *)given.target + y * size + x;
        target[0] = given.values[red];
        target[size * size] = given.values[256 + green];
        target[2 * size * size] = given.values[512 + blue];
    } else {
        unsigned char *target = (unsigned char *)given.target + (y * size + x) * 3;
        target[0] = red, target[1] = green, target[2] = blue;
    }
}
