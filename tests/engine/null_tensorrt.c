/* TensorRT's libraries with nothing in them, for its Python bindings to load: every entry point returns null.
   With `hollow` set, builder and runtime are objects whose every method does nothing and returns null. */
static void *nothing(void) { return 0; }
static void *methods[512] = {[0 ... 511] = (void *)nothing};
static void *object[64] = {methods, [1 ... 63] = object}; /* a table of methods, then what its methods hand on to */
int hollow = 0;

typedef void Log(void *logger, int severity, const char *message);

static void *start(void *logger, int version) { /* from 11 on four methods of a base class stand before log() */
    (*(Log ***)logger)[version < 110000 ? 0 : 4](logger, 1, "Error Code 6: no GPU is here");
    return hollow ? object : 0;
}
void *createInferBuilder_INTERNAL(void *logger, int version) { return start(logger, version); }
void *createInferRuntime_INTERNAL(void *logger, int version) { return start(logger, version); }

#define NULL_ENTRY(name) void *name(void) { return 0; }
NULL_ENTRY(createInferRefitter_INTERNAL)
NULL_ENTRY(createNvOnnxParser_INTERNAL)
NULL_ENTRY(createNvOnnxParserRefitter_INTERNAL)
NULL_ENTRY(getBuilderPluginRegistry)
NULL_ENTRY(getPluginRegistry)
NULL_ENTRY(getNvOnnxParserVersion)
NULL_ENTRY(initLibNvInferPlugins)
NULL_ENTRY(_ZN11nvuffparser15createUffParserEv) /* this and the rest: 8.x alone */
NULL_ENTRY(_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi)
NULL_ENTRY(_ZN14nvcaffeparser117createCaffeParserEv)
NULL_ENTRY(_ZN14nvcaffeparser123shutdownProtobufLibraryEv)
