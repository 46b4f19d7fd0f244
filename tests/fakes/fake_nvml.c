/* A stand-in for libnvidia-ml.so.1, for machines without a GPU.
 *
 * Two cards: the first of NVML is the second of CUDA (fake_cuda.c), as on a machine where CUDA
 * begins with the fastest. Names, units and codes are those of nvml.h. Every call wants
 * nvmlInit_v2 first, and a handle that was given out.
 */
#include <stdio.h>
#include <string.h>

typedef int R; /* nvmlReturn_t */
enum { OK, UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND = 6 };
typedef struct { const char *bus, *name; unsigned long long energy, reasons;
                 unsigned power, sm, sm_limit, memory, limit, celsius; } Card;
static const Card FRESH[] = {
    {"0000:01:00.0", "NVIDIA T400", 7000, 1, 5000, 300, 1425, 405, 30000, 30},
    {"0000:65:00.0", "NVIDIA GeForce RTX 4090", 123456, 0x44, 215500, 2520, 3105, 10501, 450000, 71},
};
static Card cards[2];
static int started, without_energy, without_all;

void fake_nvml(int no_energy, int nothing) {
    memcpy(cards, FRESH, sizeof cards);
    without_energy = no_energy, without_all = nothing;
}
void fake_nvml_set(unsigned long long energy, unsigned long long reasons) {
    cards[1].energy = energy, cards[1].reasons = reasons;
}
__attribute__((constructor)) static void start(void) { fake_nvml(0, 0); }

R nvmlInit_v2(void) { return started = 1, OK; }
R nvmlDeviceGetHandleByPciBusId_v2(const char *bus, Card **out) {
    if (!started) return UNINITIALIZED;
    for (int i = 0; i < 2; i++)
        if (!strcmp(bus, cards[i].bus)) return *out = &cards[i], OK;
    return NOT_FOUND;
}
R nvmlDeviceGetName(Card *card, char *out, unsigned size) {
    return snprintf(out, size, "%s", card->name), OK;
}
static R answer(Card *card, int supported, unsigned *out, unsigned value) {
    if (card != &cards[0] && card != &cards[1]) return INVALID_ARGUMENT;
    return supported && !without_all ? (*out = value, OK) : NOT_SUPPORTED;
}
R nvmlDeviceGetTotalEnergyConsumption(Card *card, unsigned long long *out) {
    if (without_energy || without_all) return NOT_SUPPORTED;
    return *out = card->energy, OK;
}
R nvmlDeviceGetPowerUsage(Card *card, unsigned *out) { return answer(card, 1, out, card->power); }
R nvmlDeviceGetClockInfo(Card *card, int which, unsigned *out) {
    return answer(card, which == 1 || which == 2, out, which == 1 ? card->sm : card->memory);
}
R nvmlDeviceGetMaxClockInfo(Card *card, int which, unsigned *out) {
    return answer(card, which == 1, out, card->sm_limit);
}
R nvmlDeviceGetEnforcedPowerLimit(Card *card, unsigned *out) {
    return answer(card, 1, out, card->limit);
}
R nvmlDeviceGetTemperature(Card *card, int sensor, unsigned *out) {
    return answer(card, sensor == 0, out, card->celsius);
}
R nvmlDeviceGetCurrentClocksThrottleReasons(Card *card, unsigned long long *out) {
    if (without_all) return NOT_SUPPORTED;
    return *out = card->reasons, OK;
}
