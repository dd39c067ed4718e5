// The library that `ffnskip run` preloads: stands before libllama's functions in any dynamically linked program.
//
// Nothing here knows how skipping works; each function calls llama.cpp's own and tells the overlay.
#include "ffnskip/version.h"
#include "hooks.h"

#include <dlfcn.h>
#include <link.h>
#include <sys/stat.h>
#include <unistd.h>

#include <ggml-backend.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <string>
#include <vector>

#define FFNSKIP_INTERPOSED extern "C" __attribute__((visibility("default")))

namespace {

const ffnskip::Hooks * g_hooks  = nullptr;
bool                   g_linked = false;        // the program, or a library it is linked with, is linked with libllama
std::atomic<bool>      g_active{ false };       // some context skips
std::atomic<bool>      g_used{ false };         // some context was made through here
std::atomic<bool>      g_reached{ false };      // some model was loaded through here
std::atomic<bool>      g_past{ false };         // some model was loaded past here
std::atomic<bool>      g_said_past{ false };    // and that was said

[[gnu::format(printf, 1, 2)]] void say(const char * format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::fputs("ffnskip: ", stderr);
    std::vfprintf(stderr, format, arguments);
    std::fputc('\n', stderr);
    va_end(arguments);
}

// llama.cpp's own function: the next one in the order of loading, or that of a libllama loaded later and kept to itself.
void * find(const char * name) {
    if (void * next = dlsym(RTLD_NEXT, name)) {
        return next;
    }
    for (const char * library : { "libllama.so.0", "libllama.so" }) {
        if (void * handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD)) {
            return dlsym(handle, name);
        }
    }
    return nullptr;
}

template <typename Function> Function * original(Function *, const char * name) {
    void * found = find(name);
    if (found == nullptr) {
        say("libllama has no '%s'; run the program without ffnskip", name);
        std::abort();
    }
    return reinterpret_cast<Function *>(found);
}

// The function that this one stands before; looked up once.
#define ORIGINAL(name) ([] { static const auto found = original(&name, #name); return found; }())

template <typename Call> int32_t run(void * call) {
    return (*static_cast<Call *>(call))();
}

const char * version_of(const char * function) {
    void * found = find(function);
    return found == nullptr ? "unknown" : reinterpret_cast<const char * (*) ()>(found)();
}

bool strict() {
    return std::getenv("FFNSKIP_STRICT") != nullptr;
}

// With what the program has written so far, since no destructor will run any more.
[[noreturn]] void stop() {
    std::fflush(nullptr);
    std::_Exit(2);
}

std::string path_of_this_library() {
    Dl_info self{};
    dladdr(reinterpret_cast<const void *>(&path_of_this_library), &self);
    return self.dli_fname;
}

// LD_PRELOAD as it was before `ffnskip run`: it may be a list, separated by spaces or colons.
void leave_ld_preload() {
    const char *      list = std::getenv("LD_PRELOAD");
    const std::string all = list == nullptr ? "" : list, ours = path_of_this_library();
    std::string       others;
    for (size_t begin = 0; begin <= all.size();) {
        const size_t      end  = std::min(all.find_first_of(" :", begin), all.size());
        const std::string name = all.substr(begin, end - begin);
        if (!name.empty() && name != ours) {
            others += (others.empty() ? "" : " ") + name;
        }
        begin = end + 1;
    }
    others.empty() ? unsetenv("LD_PRELOAD") : setenv("LD_PRELOAD", others.c_str(), 1);
}

// The structures that llama.cpp's functions take by value differ between versions, so none may pass through here: the
// program starts over without this library.
[[noreturn]] void start_without() {
    std::ifstream            file("/proc/self/cmdline", std::ios::binary);
    std::vector<std::string> words;
    for (std::string word; std::getline(file, word, '\0');) {
        words.push_back(word);
    }
    std::vector<char *> argv;
    for (std::string & word : words) {
        argv.push_back(word.data());
    }
    argv.push_back(nullptr);
    leave_ld_preload();
    execv("/proc/self/exe", argv.data());
    say("can't start over: %s", std::strerror(errno));
    std::_Exit(2);
}

bool same_version() {
    return std::strcmp(version_of("llama_version"), FFNSKIP_LLAMA_VERSION) == 0 &&
           std::strcmp(version_of("ggml_version"), FFNSKIP_GGML_VERSION) == 0;
}

const ffnskip::Hooks * load_overlay() {
    std::string path = path_of_this_library();
    path             = path.substr(0, path.rfind('/') + 1) + "libffnskip-overlay.so";
    void * overlay   = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (overlay == nullptr) {
        say("%s; the program runs dense", dlerror());
        return nullptr;
    }
    const auto hooks = reinterpret_cast<decltype(&ffnskip_hooks)>(dlsym(overlay, "ffnskip_hooks"));
    return hooks == nullptr ? nullptr : hooks();
}

std::string versions() {
    return std::string("built for llama.cpp " FFNSKIP_LLAMA_VERSION " (ggml " FFNSKIP_GGML_VERSION "), but the program uses ") +
           version_of("llama_version") + " (ggml " + version_of("ggml_version") + "); ";
}

__attribute__((constructor)) void begin() {
    g_linked = dlsym(RTLD_NEXT, "llama_decode") != nullptr;
    if (!g_linked) {
        return;  // a shell, say, that will start a llama.cpp program
    }
    if (!same_version()) {
        say("%s%s", versions().c_str(), strict() ? "not started (--strict)" : "it runs dense");
        if (strict()) {
            std::_Exit(2);
        }
        start_without();
    }
    g_hooks = load_overlay();
    if (g_hooks == nullptr && strict()) {
        std::_Exit(2);
    }
}

// A library that the program opened later, a plug-in or an extension module, is linked with libllama.
void begin_late() {
    static std::once_flag once;
    std::call_once(once, [] {
        if (g_linked) {
            return;
        }
        if (!same_version()) {  // and it is too late to start over
            say("%sstopped; start it without ffnskip", versions().c_str());
            stop();
        }
        for (const char * library : { "libllama.so.0", "libllama.so" }) {
            dlopen(library, RTLD_LAZY | RTLD_NOLOAD | RTLD_GLOBAL);  // where the overlay finds it
        }
        g_hooks = load_overlay();
        if (g_hooks == nullptr && strict()) {
            stop();
        }
    });
    g_reached = true;
}

// ffnskip_cpp skips by itself in what it opens.
bool is_ffnskip_cpp_loaded() {
    const auto is_it = [](dl_phdr_info * info, size_t, void *) {
        return int(std::strstr(info->dlpi_name, "/ffnskip_cpp/_core.") != nullptr);
    };
    return dl_iterate_phdr(is_it, nullptr) != 0;
}

// llama_cpp sends what is said to nobody while it loads a model.
bool is_stderr_seen() {
    struct stat error{}, null{};
    return fstat(STDERR_FILENO, &error) == 0 && stat("/dev/null", &null) == 0 && error.st_rdev != null.st_rdev;
}

// The program asks libllama for its functions by name (Python's ctypes, say), and so goes past this library.
void say_past() {
    if (!g_said_past.exchange(true) && !is_ffnskip_cpp_loaded()) {
        say("the program opened libllama by itself, where it can't be reached; nothing is skipped%s. In Python, use "
            "ffnskip_cpp.Llama in place of llama_cpp.Llama", strict() ? "; stopped (--strict)" : "");
        if (strict()) {
            stop();
        }
    }
}

// ggml's own function, for a caller that may have opened its ggml where nobody else finds it.
template <typename Function> Function * of_ggml(Function *, const char * name, void * caller) {
    void * found = dlsym(RTLD_NEXT, name);
    Dl_info library{};
    if (found == nullptr && dladdr(caller, &library) != 0) {
        void * const handle = dlopen(library.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
        found               = handle == nullptr ? nullptr : dlsym(handle, name);
    }
    if (found == nullptr) {
        say("no '%s' was found; run the program without ffnskip", name);
        std::abort();
    }
    return reinterpret_cast<Function *>(found);
}

bool is_of_libllama(void * address) {
    Dl_info library{}, decode{};
    if (dladdr(address, &library) == 0) {
        return false;
    }
    void * const handle = dlopen(library.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    return handle != nullptr && dladdr(dlsym(handle, "llama_decode"), &decode) != 0 && decode.dli_fbase == library.dli_fbase;
}

__attribute__((destructor)) void end() {
    if (g_active || (g_hooks != nullptr && g_used && std::getenv("FFNSKIP_STATS_FILE") != nullptr)) {
        g_hooks->report();
        return;
    }
    if (g_used || find("llama_decode") == nullptr) {
        return;
    }
    if (g_linked) {
        say("the program made no context of a shared libllama; nothing was skipped");
    } else {
        say_past();
    }
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

}  // namespace

// ---- models ----

FFNSKIP_INTERPOSED llama_model * llama_model_load_from_file(const char * path, llama_model_params params) {
    begin_late();
    return noted(ORIGINAL(llama_model_load_from_file)(path, params), path);
}

FFNSKIP_INTERPOSED llama_model * llama_model_load_from_splits(const char ** paths, size_t n, llama_model_params params) {
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

// ---- what libllama itself asks of ggml comes by here, wherever libllama was opened from ----

// While it loads a model.
FFNSKIP_INTERPOSED size_t ggml_backend_dev_count() {
    void * const      caller = __builtin_return_address(0);
    static const auto found  = of_ggml(&ggml_backend_dev_count, "ggml_backend_dev_count", caller);
    if (!g_linked && !g_reached && !g_past && is_of_libllama(caller)) {
        g_past = true;
    }
    return found();
}

// While it loads one, and with every decode.
FFNSKIP_INTERPOSED int64_t ggml_time_us() {
    void * const      caller = __builtin_return_address(0);
    static const auto found  = of_ggml(&ggml_time_us, "ggml_time_us", caller);
    if (g_past && !g_said_past && is_stderr_seen()) {
        say_past();
    }
    return found();
}

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
    return g_active && type == LLAMA_PROCESS_TYPE_DECODE ? g_hooks->process(ctx, batch, run<decltype(call)>, &call) : call();
}

#endif

// ---- outputs ----

FFNSKIP_INTERPOSED float * llama_get_logits(llama_context * ctx) {
    read_outputs(ctx);
    return ORIGINAL(llama_get_logits)(ctx);
}

FFNSKIP_INTERPOSED float * llama_get_logits_ith(llama_context * ctx, int32_t i) {
    read_outputs(ctx);
    return ORIGINAL(llama_get_logits_ith)(ctx, i);
}

FFNSKIP_INTERPOSED llama_token llama_sampler_sample(llama_sampler * sampler, llama_context * ctx, int32_t i) {
    read_outputs(ctx);
    return ORIGINAL(llama_sampler_sample)(sampler, ctx, i);
}

FFNSKIP_INTERPOSED llama_token llama_get_sampled_token_ith(llama_context * ctx, int32_t i) {
    read_outputs(ctx);
    return ORIGINAL(llama_get_sampled_token_ith)(ctx, i);
}

FFNSKIP_INTERPOSED float * llama_get_sampled_probs_ith(llama_context * ctx, int32_t i) {
    read_outputs(ctx);
    return ORIGINAL(llama_get_sampled_probs_ith)(ctx, i);
}

FFNSKIP_INTERPOSED float * llama_get_sampled_logits_ith(llama_context * ctx, int32_t i) {
    read_outputs(ctx);
    return ORIGINAL(llama_get_sampled_logits_ith)(ctx, i);
}

#ifdef FFNSKIP_HAVE_PROCESS

// ---- the contents of batches ----

FFNSKIP_INTERPOSED void llama_batch_ext_clear(llama_batch_ext * batch) {
    ORIGINAL(llama_batch_ext_clear)(batch);
    if (g_active) {
        g_hooks->batch_cleared(batch);
    }
}

FFNSKIP_INTERPOSED void llama_batch_ext_free(llama_batch_ext * batch) {
    if (g_active) {
        g_hooks->batch_freed(batch);
    }
    ORIGINAL(llama_batch_ext_free)(batch);
}

FFNSKIP_INTERPOSED int32_t llama_batch_ext_add(llama_batch_ext * batch, llama_seq_id seq) {
    const int32_t row = ORIGINAL(llama_batch_ext_add)(batch, seq);
    if (g_active && row >= 0) {
        g_hooks->row_added(batch, row, seq, LLAMA_TOKEN_NULL);
    }
    return row;
}

FFNSKIP_INTERPOSED int32_t llama_batch_ext_add_token(llama_batch_ext * batch, llama_seq_id seq, llama_token token) {
    const int32_t row = ORIGINAL(llama_batch_ext_add_token)(batch, seq, token);
    if (g_active && row >= 0) {
        g_hooks->row_added(batch, row, seq, token);
    }
    return row;
}

FFNSKIP_INTERPOSED int32_t llama_batch_ext_add_embd(llama_batch_ext * batch, llama_seq_id seq, llama_embd embd) {
    const int32_t row = ORIGINAL(llama_batch_ext_add_embd)(batch, seq, embd);
    if (g_active && row >= 0) {
        g_hooks->row_added(batch, row, seq, LLAMA_TOKEN_NULL);
    }
    return row;
}

FFNSKIP_INTERPOSED bool llama_batch_ext_add_seq(llama_batch_ext * batch, int32_t row, llama_seq_id seq) {
    const bool done = ORIGINAL(llama_batch_ext_add_seq)(batch, row, seq);
    if (g_active && done) {
        g_hooks->row_shared(batch, row, seq);
    }
    return done;
}

FFNSKIP_INTERPOSED bool llama_batch_ext_set_embd_token(llama_batch_ext * batch, int32_t row, llama_embd embd) {
    const bool done = ORIGINAL(llama_batch_ext_set_embd_token)(batch, row, embd);
    if (g_active && done) {
        g_hooks->row_embedded(batch, row);
    }
    return done;
}

FFNSKIP_INTERPOSED bool llama_batch_ext_set_embd_state(llama_batch_ext * batch, int32_t row, llama_embd embd) {
    const bool done = ORIGINAL(llama_batch_ext_set_embd_state)(batch, row, embd);
    if (g_active && done) {
        g_hooks->row_embedded(batch, row);
    }
    return done;
}

FFNSKIP_INTERPOSED bool llama_batch_ext_set_output_embd(llama_batch_ext * batch, int32_t row, bool value) {
    const bool done = ORIGINAL(llama_batch_ext_set_output_embd)(batch, row, value);
    if (g_active && done) {
        g_hooks->row_output(batch, row, value);
    }
    return done;
}

FFNSKIP_INTERPOSED bool llama_batch_ext_set_output_logits(llama_batch_ext * batch, int32_t row, bool value) {
    const bool done = ORIGINAL(llama_batch_ext_set_output_logits)(batch, row, value);
    if (g_active && done) {
        g_hooks->row_output(batch, row, value);
    }
    return done;
}

FFNSKIP_INTERPOSED bool llama_batch_ext_set_pos(llama_batch_ext * batch, int32_t row, const llama_pos * pos) {
    const bool done = ORIGINAL(llama_batch_ext_set_pos)(batch, row, pos);
    if (g_active && done) {
        g_hooks->row_placed(batch, row, pos[0]);
    }
    return done;
}

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

FFNSKIP_INTERPOSED size_t llama_state_set_data(llama_context * ctx, const uint8_t * data, size_t size) {
    if (g_active) {
        g_hooks->replaced(ctx, -1);
    }
    return ORIGINAL(llama_state_set_data)(ctx, data, size);
}

FFNSKIP_INTERPOSED bool llama_state_load_file(llama_context * ctx, const char * path, llama_token * tokens, size_t capacity,
                                              size_t * count) {
    if (g_active) {
        g_hooks->replaced(ctx, -1);
    }
    return ORIGINAL(llama_state_load_file)(ctx, path, tokens, capacity, count);
}

FFNSKIP_INTERPOSED size_t llama_state_seq_set_data(llama_context * ctx, const uint8_t * data, size_t size, llama_seq_id seq) {
    if (g_active) {
        g_hooks->replaced(ctx, seq);
    }
    return ORIGINAL(llama_state_seq_set_data)(ctx, data, size, seq);
}

FFNSKIP_INTERPOSED size_t llama_state_seq_set_data_ext(llama_context * ctx, const uint8_t * data, size_t size, llama_seq_id seq,
                                                       llama_state_seq_flags flags) {
    if (g_active) {
        g_hooks->replaced(ctx, seq);
    }
    return ORIGINAL(llama_state_seq_set_data_ext)(ctx, data, size, seq, flags);
}

FFNSKIP_INTERPOSED size_t llama_state_seq_load_file(llama_context * ctx, const char * path, llama_seq_id seq,
                                                    llama_token * tokens, size_t capacity, size_t * count) {
    if (g_active) {
        g_hooks->replaced(ctx, seq);
    }
    return ORIGINAL(llama_state_seq_load_file)(ctx, path, seq, tokens, capacity, count);
}
