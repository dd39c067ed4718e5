// What the preload library (interpose.cpp) asks of the overlay (overlay.cpp).
//
// Two libraries, for a preloaded one enters every process the program starts: interpose.cpp needs nothing of llama.cpp
// to load, and loads the overlay, which does, only where llama.cpp is there and of the version it was built for.
#pragma once

#include <llama.h>

#include <cstdint>

namespace ffnskip {

// Calls llama.cpp's own function.
using Run = int32_t (*)(void * call);

struct Hooks {
    // A model was loaded from a file, the first one where it is split; and before it is freed.
    void (*model_loaded)(const llama_model * model, const char * path);
    void (*model_freeing)(const llama_model * model);

    // Before and after a context is made. attach() may change `params`; its result is null where the context is left
    // alone, and goes to created(), with a null `ctx` if there is none.
    void * (*attach)(const llama_model * model, llama_context_params * params);
    void (*created)(void * attached, llama_context * ctx);
    // Before and after a context is freed.
    void * (*freeing)(llama_context * ctx);
    void (*freed)(void * detached);

    int32_t (*decode)(llama_context * ctx, const llama_batch * batch, Run run, void * call);

    // The program looks at outputs of the last decode.
    void (*outputs_read)(llama_context * ctx);

    void (*copied)(llama_memory_t memory, llama_seq_id from, llama_seq_id to);
    void (*shifted)(llama_memory_t memory, llama_seq_id seq, llama_pos p0, llama_pos p1, llama_pos delta);
    void (*replaced)(llama_context * ctx, llama_seq_id seq);

    // At exit: prints the statistics.
    void (*report)();
};

}  // namespace ffnskip

// Null where the settings in the environment can't be used; says why on stderr.
extern "C" const ffnskip::Hooks * ffnskip_hooks();
