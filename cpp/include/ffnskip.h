// ffnskip for C, and for every language that calls C: the stable interface. C++ has <ffnskip/ffnskip.h>.
//
//     struct ffnskip_controller * skip = ffnskip_init();
//     struct llama_context_params params = llama_context_default_params();
//     ffnskip_attach(skip, &params);                      // before the context is made
//     struct llama_context * ctx = llama_init_from_model(model, params);
//     ffnskip_find_profile(skip, model, "model.gguf");    // what was found for this model; or ffnskip_set_option
//     ffnskip_probe(skip, ctx);                           // learns where the FFN blocks are, applies the settings
//     ffnskip_decode(skip, ctx, batch);                   // in place of llama_decode, prompts and all
//
// Nothing is skipped before an option or a profile says so. Prompt tokens and the first generated tokens of each
// sequence (option "warm-up") run in full; which tokens are generated is seen from the batches, as
// <ffnskip/controller.h> says.
//
// Functions return a status (enum ffnskip_status) where nothing else is said, and are safe to call with any argument
// null: they refuse it. One controller serves
// one context, must outlive it, and is used by one thread at a time.
#ifndef FFNSKIP_H
#define FFNSKIP_H

#include "ffnskip/export.h"
#include "ffnskip/version.h"

#include <llama.h>

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// What functions return. ffnskip_decode and ffnskip_decode_rows also pass on what llama_decode returned: 1, 2 and
// small negative numbers, as llama.h has them.
enum ffnskip_status {
    FFNSKIP_OK                = 0,
    FFNSKIP_NO_PROFILE        = 1001,   // no error: the model has none, and nothing was changed
    FFNSKIP_ERROR_ARGUMENT    = -1001,  // an argument that is null, unknown or out of range; a profile that is none
    FFNSKIP_ERROR_PROFILE     = -1002,  // a profile that was made for another model
    FFNSKIP_ERROR_UNSUPPORTED = -1003,  // this model, or the llama.cpp in this process, can't be skipped with
    FFNSKIP_ERROR_FAILED      = -1004,  // anything else, such as no memory left
};

enum ffnskip_row_kind {
    FFNSKIP_ROW_PROMPT    = 0,  // runs in full, not counted
    FFNSKIP_ROW_WARM_UP   = 1,  // a generated token that runs in full, counted
    FFNSKIP_ROW_SKIPPABLE = 2,  // a generated token that may skip, counted
};

// Counts over generated tokens since the last reset. Later versions add members at the end.
struct ffnskip_stats {
    size_t           size;                  // in: sizeof(struct ffnskip_stats); out: how much of it was filled in
    uint64_t         tokens;                // generated tokens fed back to the model, warm-up included
    uint64_t         ffn_total;             // FFN blocks of those tokens
    uint64_t         ffn_skipped;           // of these, skipped
    uint64_t         checks;                // similarities computed
    uint64_t         tokens_never_tripped;  // tokens that were checked and never tripped
    uint64_t         ffn_bytes_not_read;    // weights of skipped blocks that no other row of the batch needed
    uint64_t         n_layer;               // 0 before ffnskip_probe
    const uint64_t * skipped_per_layer;     // [n_layer], the controller's own, until it is asked again
    uint64_t         bytes_total;           // policy channels: weights that may be left out, for those tokens
    uint64_t         bytes_left_out;        // of these, of channels and blocks left out
};

struct ffnskip_controller;

// "0.1.0", of the library, as FFNSKIP_VERSION is of this header. And the llama.cpp that it was built for, the only
// one it works with: "0.5.0-dev (ggml 0.25.3)".
FFNSKIP_API const char * ffnskip_version(void);
FFNSKIP_API const char * ffnskip_llama_version(void);

// Null where there is no memory.
FFNSKIP_API struct ffnskip_controller * ffnskip_init(void);
// After the context is freed. Null is fine.
FFNSKIP_API void ffnskip_free(struct ffnskip_controller * skip);

// What went wrong in the last call that failed, for people to read; valid until the next one that fails. Never null.
// For a null `skip`: in this thread's last call without a controller, ffnskip_init among them.
FFNSKIP_API const char * ffnskip_last_error(const struct ffnskip_controller * skip);

// Sets cb_eval and cb_eval_user_data of `params`. A callback that is there already goes on being called, after ours.
// FFNSKIP_ERROR_UNSUPPORTED: the llama.cpp in this process is not the one that this library was built for.
FFNSKIP_API int32_t ffnskip_attach(struct ffnskip_controller * skip, struct llama_context_params * params);

// A skip option as `ffnskip run` takes it, without its dashes: "skip-ratio" and "0.25", "skip-layers" and "3,5-7";
// <ffnskip/options.h> has them all, and there is "reuse", "all" or "full". `value` may be null for "no-skip". Before
// ffnskip_probe options are only noted. After it they take effect at once, and one that does not fit the model or the
// others changes nothing.
FFNSKIP_API int32_t ffnskip_set_option(struct ffnskip_controller * skip, const char * name, const char * value);

// Settings of a profile, a file of its own or in a model's file; they replace what was set before. Options set later
// change single values.
FFNSKIP_API int32_t ffnskip_load_profile(struct ffnskip_controller * skip, const char * path);
// The same with the profile beside the model that was loaded from `model_path` (model.ffnskip.gguf beside
// model.gguf), or else the one in it. FFNSKIP_NO_PROFILE where there is neither.
FFNSKIP_API int32_t ffnskip_find_profile(struct ffnskip_controller * skip, const struct llama_model * model,
                                         const char * model_path);

// The file that the context's model was loaded from, or the first of several: policy "channels" takes weights from it that
// llama.cpp has put into another order. Before ffnskip_probe; ffnskip_find_profile says it too.
FFNSKIP_API int32_t ffnskip_set_model_path(struct ffnskip_controller * skip, const char * model_path);

// Learns the FFN blocks of the context's model from a decode in which nothing is computed, then applies the settings.
// The context's memory must be empty, and is so again afterwards. After FFNSKIP_ERROR_UNSUPPORTED, for a model with
// nothing that can be skipped, the context runs dense. So it does after FFNSKIP_ERROR_PROFILE, and the profile is
// forgotten with the options that were set on top of it. After any other error of the settings they can be mended by
// further options.
FFNSKIP_API int32_t ffnskip_probe(struct ffnskip_controller * skip, struct llama_context * ctx);

// llama_decode with skipping. What a row gets does not depend on the rest of the batch.
FFNSKIP_API int32_t ffnskip_decode(struct ffnskip_controller * skip, struct llama_context * ctx,
                                   struct llama_batch batch);
// The same for a caller who names the kind of each row, an ffnskip_row_kind: `kinds` has batch.n_tokens of them.
FFNSKIP_API int32_t ffnskip_decode_rows(struct ffnskip_controller * skip, struct llama_context * ctx,
                                        struct llama_batch batch, const uint8_t * kinds);

// To be told after llama_memory_seq_cp, after llama_memory_seq_add, and after a sequence was loaded from elsewhere,
// such as a saved state (all of them if `seq` is negative); the next token of the sequence counts as a prompt
// otherwise. Removing and cutting sequences needs no call.
FFNSKIP_API int32_t ffnskip_seq_cp(struct ffnskip_controller * skip, llama_seq_id from, llama_seq_id to);
FFNSKIP_API int32_t ffnskip_seq_add(struct ffnskip_controller * skip, llama_seq_id seq, llama_pos p0, llama_pos p1,
                                    llama_pos delta);
FFNSKIP_API int32_t ffnskip_seq_reset(struct ffnskip_controller * skip, llama_seq_id seq);

FFNSKIP_API int32_t ffnskip_get_stats(struct ffnskip_controller * skip, struct ffnskip_stats * stats);
FFNSKIP_API int32_t ffnskip_reset_stats(struct ffnskip_controller * skip);

#ifdef __cplusplus
}
#endif

#endif  // FFNSKIP_H
