// The library that `ffnskip run` preloads: stands before libllama's functions in any dynamically linked program.
//
// Nothing here knows how skipping works; each function calls llama.cpp's own and tells the overlay.
#include "batch_rows.h"
#include "hooks.h"
#include "process.h"

#include <cstdlib>
#include <mutex>
#include <type_traits>
#include <unordered_map>

namespace ffnskip {
namespace {

template <typename Function> Function * original(Function *, const char * name) {
    void * found = find(name);
    if (found == nullptr) {
        say("libllama has no '%s'; run the program without ffnskip", name);
        std::abort();
    }
    return reinterpret_cast<Function *>(found);
}

// The function that this one stands before; looked up once.
#define ORIGINAL(name)                                    \
    ([] {                                                 \
        static const auto found = original(&name, #name); \
        return found;                                     \
    }())

// One that does `before` first, and one that notes what llama.cpp's did to a batch.
#define FFNSKIP_BEFORE(before, Result, name, parameters, arguments) \
    FFNSKIP_INTERPOSED Result name parameters {                     \
        before;                                                     \
        return ORIGINAL(name) arguments;                            \
    }
#define FFNSKIP_NOTED(Result, name, parameters, arguments, change)                       \
    FFNSKIP_INTERPOSED Result name parameters {                                          \
        return noted(ORIGINAL(name) arguments, batch,                                    \
                     [&](BatchRows & rows, [[maybe_unused]] Result result) { change; }); \
    }

template <typename Call> int32_t run(void * call) {
    return (*static_cast<Call *>(call))();
}

llama_model * noted(llama_model * model, const char * path) {
    if (g_hooks != nullptr && model != nullptr) {
        g_hooks->model_loaded(model, path);
    }
    return model;
}

llama_context * make_context(llama_model * model, llama_context_params params) {
    begin_late();
    g_used          = true;
    void *     held = g_hooks == nullptr ? nullptr : g_hooks->attach(model, &params);
    const auto ctx  = ORIGINAL(llama_init_from_model)(model, params);
    if (held != nullptr) {
        g_hooks->created(held, ctx);
        if (ctx != nullptr) {
            g_active = true;
        }
    }
    return ctx;
}

void read_outputs(llama_context * ctx) {
    if (g_active) {
        g_hooks->outputs_read(ctx);
    }
}

void replaced(llama_context * ctx, llama_seq_id seq) {
    if (g_active) {
        g_hooks->replaced(ctx, seq);
    }
}

#ifdef FFNSKIP_HAVE_PROCESS

// The contents of a llama_batch_ext can't be read, so they are noted as they are set.
struct Batches {
    std::mutex                                       mutex;
    std::unordered_map<llama_batch_ext *, BatchRows> rows;
};

// Never destroyed, as programs free batches as late as in destructors of their own.
Batches & batches() {
    static Batches & instance = *new Batches;
    return instance;
}

// Notes what libllama's function did to the batch: `result` is what it returned, false or below 0 where it did nothing.
template <typename Result, typename Change> Result noted(Result result, llama_batch_ext * batch, Change change) {
    constexpr Result k_least = std::is_same_v<Result, bool>;  // true, or row 0
    if (g_active && result >= k_least) {
        const std::lock_guard lock(batches().mutex);
        change(batches().rows[batch], result);
    }
    return result;
}

#endif  // FFNSKIP_HAVE_PROCESS

}  // namespace
}  // namespace ffnskip

using namespace ffnskip;

// ---- models ----

FFNSKIP_INTERPOSED llama_model * llama_model_load_from_file(const char * path, llama_model_params params) {
    begin_late();
    return noted(ORIGINAL(llama_model_load_from_file)(path, params), path);
}

FFNSKIP_INTERPOSED llama_model * llama_model_load_from_splits(const char ** paths, size_t n,
                                                              llama_model_params params) {
    begin_late();
    return noted(ORIGINAL(llama_model_load_from_splits)(paths, n, params), n > 0 ? paths[0] : "");
}

FFNSKIP_INTERPOSED void llama_model_free(llama_model * model) {
    if (g_hooks != nullptr) {
        g_hooks->model_freeing(model);
    }
    ORIGINAL(llama_model_free)(model);
}

// Older names of the same, which programs still use.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

FFNSKIP_INTERPOSED llama_model * llama_load_model_from_file(const char * path, llama_model_params params) {
    return llama_model_load_from_file(path, params);
}

FFNSKIP_INTERPOSED void llama_free_model(llama_model * model) {
    llama_model_free(model);
}

#pragma GCC diagnostic pop

// ---- contexts ----

FFNSKIP_INTERPOSED llama_context * llama_init_from_model(llama_model * model, llama_context_params params) {
    return make_context(model, params);
}

FFNSKIP_INTERPOSED llama_context * llama_new_context_with_model(llama_model * model, llama_context_params params) {
    return make_context(model, params);
}

FFNSKIP_INTERPOSED void llama_free(llama_context * ctx) {
    void * detached = g_active ? g_hooks->freeing(ctx) : nullptr;
    ORIGINAL(llama_free)(ctx);
    if (detached != nullptr) {
        g_hooks->freed(detached);
    }
}

// ---- decoding ----

FFNSKIP_INTERPOSED int32_t llama_decode(llama_context * ctx, llama_batch batch) {
    auto call = [&] { return ORIGINAL(llama_decode)(ctx, batch); };
    return g_active ? g_hooks->decode(ctx, &batch, run<decltype(call)>, &call) : call();
}

#ifdef FFNSKIP_HAVE_PROCESS
FFNSKIP_INTERPOSED int32_t llama_process(llama_context * ctx, llama_process_type type, llama_batch_ext * batch) {
    auto call = [&] { return ORIGINAL(llama_process)(ctx, type, batch); };
    if (!g_active || type != LLAMA_PROCESS_TYPE_DECODE) {
        return call();
    }
    llama_batch rows{};
    noted(true, batch, [&](BatchRows & of, bool) { rows = of.view(); });
    return g_hooks->decode(ctx, &rows, run<decltype(call)>, &call);
}
#endif

// ---- outputs ----

FFNSKIP_BEFORE(read_outputs(ctx), float *, llama_get_logits, (llama_context * ctx), (ctx))
FFNSKIP_BEFORE(read_outputs(ctx), float *, llama_get_logits_ith, (llama_context * ctx, int32_t i), (ctx, i))
FFNSKIP_BEFORE(read_outputs(ctx), llama_token, llama_sampler_sample,
               (llama_sampler * sampler, llama_context * ctx, int32_t i), (sampler, ctx, i))
FFNSKIP_BEFORE(read_outputs(ctx), llama_token, llama_get_sampled_token_ith, (llama_context * ctx, int32_t i), (ctx, i))
FFNSKIP_BEFORE(read_outputs(ctx), float *, llama_get_sampled_probs_ith, (llama_context * ctx, int32_t i), (ctx, i))
FFNSKIP_BEFORE(read_outputs(ctx), float *, llama_get_sampled_logits_ith, (llama_context * ctx, int32_t i), (ctx, i))

#ifdef FFNSKIP_HAVE_PROCESS

// ---- the contents of batches ----

FFNSKIP_INTERPOSED void llama_batch_ext_clear(llama_batch_ext * batch) {
    ORIGINAL(llama_batch_ext_clear)(batch);
    noted(true, batch, [](BatchRows & rows, bool) { rows.clear(); });
}

FFNSKIP_INTERPOSED void llama_batch_ext_free(llama_batch_ext * batch) {
    {
        const std::lock_guard lock(batches().mutex);
        batches().rows.erase(batch);
    }
    ORIGINAL(llama_batch_ext_free)(batch);
}

FFNSKIP_NOTED(int32_t, llama_batch_ext_add, (llama_batch_ext * batch, llama_seq_id seq), (batch, seq),
              rows.add(result, seq, LLAMA_TOKEN_NULL))
FFNSKIP_NOTED(int32_t, llama_batch_ext_add_token, (llama_batch_ext * batch, llama_seq_id seq, llama_token token),
              (batch, seq, token), rows.add(result, seq, token))
FFNSKIP_NOTED(int32_t, llama_batch_ext_add_embd, (llama_batch_ext * batch, llama_seq_id seq, llama_embd embd),
              (batch, seq, embd), rows.add(result, seq, LLAMA_TOKEN_NULL))
FFNSKIP_NOTED(bool, llama_batch_ext_add_seq, (llama_batch_ext * batch, int32_t row, llama_seq_id seq),
              (batch, row, seq), rows.share(row, seq))
FFNSKIP_NOTED(bool, llama_batch_ext_set_embd_token, (llama_batch_ext * batch, int32_t row, llama_embd embd),
              (batch, row, embd), rows.embed(row))
FFNSKIP_NOTED(bool, llama_batch_ext_set_embd_state, (llama_batch_ext * batch, int32_t row, llama_embd embd),
              (batch, row, embd), rows.embed(row))
FFNSKIP_NOTED(bool, llama_batch_ext_set_output_embd, (llama_batch_ext * batch, int32_t row, bool value),
              (batch, row, value), rows.output(row, value))
FFNSKIP_NOTED(bool, llama_batch_ext_set_output_logits, (llama_batch_ext * batch, int32_t row, bool value),
              (batch, row, value), rows.output(row, value))
FFNSKIP_NOTED(bool, llama_batch_ext_set_pos, (llama_batch_ext * batch, int32_t row, const llama_pos * pos),
              (batch, row, pos), rows.place(row, pos[0]))

#endif  // FFNSKIP_HAVE_PROCESS

// ---- what happens to sequences between decodes ----

FFNSKIP_INTERPOSED void llama_memory_seq_cp(llama_memory_t memory, llama_seq_id from, llama_seq_id to, llama_pos p0,
                                            llama_pos p1) {
    ORIGINAL(llama_memory_seq_cp)(memory, from, to, p0, p1);
    if (g_active) {
        g_hooks->copied(memory, from, to);
    }
}

FFNSKIP_INTERPOSED void llama_memory_seq_add(llama_memory_t memory, llama_seq_id seq, llama_pos p0, llama_pos p1,
                                             llama_pos delta) {
    ORIGINAL(llama_memory_seq_add)(memory, seq, p0, p1, delta);
    if (g_active) {
        g_hooks->shifted(memory, seq, p0, p1, delta);
    }
}

FFNSKIP_BEFORE(replaced(ctx, -1), size_t, llama_state_set_data,
               (llama_context * ctx, const uint8_t * data, size_t size), (ctx, data, size))
FFNSKIP_BEFORE(replaced(ctx, -1), bool, llama_state_load_file,
               (llama_context * ctx, const char * path, llama_token * tokens, size_t capacity, size_t * count),
               (ctx, path, tokens, capacity, count))
FFNSKIP_BEFORE(replaced(ctx, seq), size_t, llama_state_seq_set_data,
               (llama_context * ctx, const uint8_t * data, size_t size, llama_seq_id seq), (ctx, data, size, seq))
FFNSKIP_BEFORE(replaced(ctx, seq), size_t, llama_state_seq_set_data_ext,
               (llama_context * ctx, const uint8_t * data, size_t size, llama_seq_id seq, llama_state_seq_flags flags),
               (ctx, data, size, seq, flags))
FFNSKIP_BEFORE(replaced(ctx, seq), size_t, llama_state_seq_load_file,
               (llama_context * ctx, const char * path, llama_seq_id seq, llama_token * tokens, size_t capacity,
                size_t * count),
               (ctx, path, seq, tokens, capacity, count))
