/* A CUDA driver without a GPU: device memory is host memory, and every call happens at once. What it is called for it
   tells on stdout. FAKE_CUDA_FAIL names the call that fails, "map" that the GPU cannot map the host's memory. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long address;
#define OUT_OF_MEMORY 2

static int told(const char *call) {
    const char *failing = getenv("FAKE_CUDA_FAIL");
    printf("%s\n", call);
    fflush(stdout);
    return failing && !strcmp(failing, call) ? OUT_OF_MEMORY : 0;
}

int cuInit(unsigned flags) { return told("cuInit"); }
int cuDriverGetVersion(int *version) { *version = 13050; return 0; }
int cuDeviceGet(int *device, int at) { *device = at; return told("cuDeviceGet"); }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Fake GPU", size); return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) {
    const char *failing = getenv("FAKE_CUDA_FAIL");
    *value = which == 75 ? 8 : which == 76 ? 7 : which == 19 ? !failing || strcmp(failing, "map") : -1;
    return 0;
}
static unsigned flags_now = 16; /* CU_CTX_LMEM_RESIZE_TO_MAX, for whoever overwrites it */
static int retained = 0;
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    *flags = flags_now;
    *active = retained > 0;
    return told("state");
}
int cuDevicePrimaryCtxSetFlags_v2(int device, unsigned flags) {
    flags_now = flags;
    return told(retained ? "flags of an active context" : flags == 17 ? "spin" : flags == 20 ? "sleep" : "other flags");
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)16; retained++; return told("retain"); }
int cuDevicePrimaryCtxRelease_v2(int device) { retained--; return told("release"); }
int cuCtxDetach(void *context) { told("cuCtxDetach"); return 201; } /* not for a primary context */
int cuCtxPushCurrent_v2(void *context) { return told(context == (void *)16 ? "push" : "push of another"); }
int cuCtxPopCurrent_v2(void **context) { *context = (void *)16; return told("pop"); }
int cuMemHostAlloc(void **memory, size_t size, unsigned flags) {
    *memory = malloc(size);
    return told(flags == 2 ? "mapped host" : flags ? "another host" : "host");
}
int cuMemHostGetDevicePointer_v2(address *device, void *host, unsigned flags) {
    *device = (address)host;
    return told("pointer");
}
int cuMemFreeHost(void *memory) { free(memory); return told("free host"); }
int cuMemAlloc_v2(address *memory, size_t size) { *memory = (address)malloc(size); return told("device"); }
int cuMemFree_v2(address memory) { free((void *)memory); return told("free device"); }
int cuMemcpyHtoDAsync_v2(address to, const void *from, size_t size, void *stream) {
    memcpy((void *)to, from, size);
    return told("to device");
}
int cuMemcpyDtoHAsync_v2(void *to, address from, size_t size, void *stream) {
    memcpy(to, (void *)from, size);
    return told("to host");
}
int cuStreamCreate(void **stream, unsigned flags) { *stream = (void *)85; return told(flags == 1 ? "stream" : "blocking"); }
int cuStreamDestroy_v2(void *stream) { return told("free stream"); }
int cuStreamSynchronize(void *stream) { return told("wait"); }
int cuEventCreate(void **event, unsigned flags) { *event = malloc(1); return told("event"); }
int cuEventDestroy_v2(void *event) { free(event); return told("free event"); }
int cuEventRecord(void *event, void *stream) { return told(stream == (void *)85 ? "record" : "record elsewhere"); }
int cuEventElapsedTime(float *ms, void *from, void *to) { *ms = 1.5f; return 0; }
int cuEventElapsedTime_v2(float *ms, void *from, void *to) { *ms = 1.5f; return 0; }
int cuStreamBeginCapture_v2(void *stream, int mode) { return told(mode == 1 ? "begin capture" : "begin another mode"); }
int cuStreamEndCapture(void *stream, void **graph) { *graph = (void *)119; return told("end capture"); }
int cuGraphInstantiateWithFlags(void **made, void *graph, address flags) { *made = (void *)136; return told("instantiate"); }
int cuGraphDestroy(void *graph) { return told(graph == (void *)119 ? "free graph" : "free another graph"); }
int cuGraphLaunch(void *made, void *stream) { return told(made == (void *)136 ? "launch" : "launch another"); }
int cuGraphExecDestroy(void *made) { return told("free instance"); }
int cuGetErrorString(int status, const char **text) { *text = "out of memory"; return 0; }
int cuGetErrorName(int status, const char **text) { *text = "CUDA_ERROR_OUT_OF_MEMORY"; return 0; }

int cuGetProcAddress_v2(const char *name, void **found, int version, address flags, int *status) {
    char newer[128];
    void *self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    snprintf(newer, sizeof newer, "%s%s", name, strcmp(name, "cuGraphInstantiate") ? "_v2" : "WithFlags");
    *found = dlsym(self, newer);
    if (!*found) *found = dlsym(self, name);
    if (status) *status = *found ? 0 : 1;
    return *found ? 0 : 500;
}
int cuGetProcAddress(const char *name, void **found, int version, address flags) {
    return cuGetProcAddress_v2(name, found, version, flags, 0);
}
