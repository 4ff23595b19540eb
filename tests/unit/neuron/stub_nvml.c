/* A libnvidia-ml.so.1 with two GPUs. STUB_NVML names what shall fail, separated by commas:
   a function's name (it returns NVML_ERROR_UNKNOWN), "lost" (the second GPU has fallen off the
   bus), or "hang" (nvmlInitWithFlags sleeps). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, GPU_IS_LOST = 15, UNKNOWN = 999 };

static int fails(const char *name) {
    const char *list = getenv("STUB_NVML");
    const char *at = list ? strstr(list, name) : NULL;
    if (!at) return 0;
    char end = at[strlen(name)];
    return end == '\0' || end == ',';
}
#define MAY_FAIL if (fails(__func__)) return UNKNOWN
#define INDEX ((int)((char *)device - base))

static char base[2];

int nvmlInitWithFlags(unsigned flags) {
    if (fails("hang")) sleep(3600);
    MAY_FAIL; return SUCCESS;
}
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return code == GPU_IS_LOST ? "GPU is lost" : "Unknown Error"; }
int nvmlDeviceGetCount_v2(unsigned *count) { MAY_FAIL; *count = 2; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    MAY_FAIL;
    if (index == 1 && fails("lost")) return GPU_IS_LOST;
    *device = base + index; return SUCCESS;
}
int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    MAY_FAIL; snprintf(text, size, "580.12.34"); return SUCCESS;
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) { MAY_FAIL; *version = 13020; return SUCCESS; }
int nvmlDeviceGetName(void *device, char *text, unsigned size) {
    MAY_FAIL; snprintf(text, size, "Stub GPU %c", "AB"[INDEX]); return SUCCESS;
}
int nvmlDeviceGetUUID(void *device, char *text, unsigned size) {
    MAY_FAIL; snprintf(text, size, "GPU-0000000%d", INDEX); return SUCCESS;
}
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *memory) {
    MAY_FAIL;
    unsigned long long gib = 1ull << 30;
    memory[0] = (INDEX ? 8 : 24) * gib;
    memory[1] = (INDEX ? 5 : 20) * gib;
    memory[2] = memory[0] - memory[1];
    return SUCCESS;
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    MAY_FAIL; *major = 8 + INDEX; *minor = 6 * !INDEX; return SUCCESS;
}
int nvmlDeviceGetUtilizationRates(void *device, unsigned *rates) {
    MAY_FAIL; rates[0] = 37; rates[1] = 11; return SUCCESS;
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius) {
    MAY_FAIL; *celsius = 61 + INDEX; return SUCCESS;
}
