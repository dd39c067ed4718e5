// Every function of the C interface, and every refusal: test_c_api MODEL FOLDER
#include <ffnskip.h>

#include <gguf.h>
#include <llama.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_PROMPT = 8, N_GENERATED = 24, N_CTX = 128, MAX_SKIP = 2 };

static int g_failures = 0;

static void expect(int condition, const char * what) {
    if (!condition) {
        printf("FAILED: %s\n", what);
        ++g_failures;
    }
}

// The call failed with this status, and the message names this.
static void expect_refused(int32_t status, int32_t expected, const struct ffnskip_controller * skip,
                           const char * named) {
    if (status != expected || strstr(ffnskip_last_error(skip), named) == NULL) {
        printf("FAILED: status %d for %d, '%s' in '%s'\n", (int) status, (int) expected, named,
               ffnskip_last_error(skip));
        ++g_failures;
    }
}

static void expect_ok(int32_t status, const struct ffnskip_controller * skip, const char * what) {
    if (status != FFNSKIP_OK) {
        printf("FAILED: %s: status %d, %s\n", what, (int) status, ffnskip_last_error(skip));
        ++g_failures;
    }
}

static void be_quiet(enum ggml_log_level level, const char * text, void * data) {
    (void) level;
    (void) text;
    (void) data;
}

static struct llama_context * make_context(struct llama_model * model, struct ffnskip_controller * skip) {
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx                       = N_CTX;
    params.n_seq_max                   = 2;
    params.kv_unified                  = true;  // or llama_memory_seq_cp copies whole sequences only
    params.type_k                      = GGML_TYPE_F32;
    params.type_v                      = GGML_TYPE_F32;
    params.flash_attn_type             = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.n_threads                   = 1;
    params.n_threads_batch             = 1;
    if (skip != NULL) {
        expect_ok(ffnskip_attach(skip, &params), skip, "attach");
    }
    struct llama_context * ctx = llama_init_from_model(model, params);
    if (ctx == NULL) {
        printf("no context\n");
        exit(1);
    }
    return ctx;
}

// A batch of one token of sequence `seq`, which stays valid until the next call.
static struct llama_batch one_token(llama_token token, llama_pos pos, llama_seq_id seq) {
    static llama_token    tokens[1];
    static llama_pos      positions[1];
    static int32_t        counts[1] = { 1 };
    static llama_seq_id   ids[1];
    static llama_seq_id * sequences[1] = { ids };
    static int8_t         outputs[1]   = { 1 };
    tokens[0]                          = token;
    positions[0]                       = pos;
    ids[0]                             = seq;
    struct llama_batch batch           = { 1, tokens, NULL, positions, counts, sequences, outputs };
    return batch;
}

static llama_token greedy(const struct llama_model * model, struct llama_context * ctx) {
    const float * logits = llama_get_logits_ith(ctx, -1);
    llama_token   best   = 0;
    for (llama_token i = 1; i < llama_vocab_n_tokens(llama_model_get_vocab(model)); ++i) {
        best = logits[i] > logits[best] ? i : best;
    }
    return best;
}

typedef llama_token Tokens[N_GENERATED];

// Continues a fixed prompt: by llama_decode where `skip` is null; with the kinds of rows named where `named`.
static void generate(struct llama_model * model, struct llama_context * ctx, struct ffnskip_controller * skip,
                     int named, Tokens out) {
    const uint8_t prompt_kinds[N_PROMPT] = { FFNSKIP_ROW_PROMPT };
    const uint8_t may_skip               = FFNSKIP_ROW_SKIPPABLE;
    llama_token   fed[N_PROMPT];
    for (int i = 0; i < N_PROMPT; ++i) {
        fed[i] = 17 + 31 * i;
    }
    llama_memory_clear(llama_get_memory(ctx), true);
    for (int i = 0; i < N_GENERATED; ++i) {
        struct llama_batch batch  = llama_batch_get_one(fed, i == 0 ? N_PROMPT : 1);
        int32_t            status = 0;
        if (skip == NULL) {
            status = llama_decode(ctx, batch);
        } else if (named) {
            status = ffnskip_decode_rows(skip, ctx, batch, i == 0 ? prompt_kinds : &may_skip);
        } else {
            status = ffnskip_decode(skip, ctx, batch);
        }
        expect(status == 0, "decode");
        fed[0] = out[i] = greedy(model, ctx);
    }
}

static struct ffnskip_stats stats_of(struct ffnskip_controller * skip) {
    struct ffnskip_stats stats = { 0 };
    stats.size                 = sizeof(stats);
    expect_ok(ffnskip_get_stats(skip, &stats), skip, "stats");
    expect(stats.size == sizeof(stats), "all of the statistics");
    return stats;
}

// ---- the tests ----

static void test_versions(void) {
    char version[64];
    snprintf(version, sizeof(version), "%d.%d.%d", FFNSKIP_VERSION_MAJOR, FFNSKIP_VERSION_MINOR, FFNSKIP_VERSION_PATCH);
    expect(strcmp(version, FFNSKIP_VERSION) == 0 && strcmp(version, ffnskip_version()) == 0, "the version");
    expect(strcmp(ffnskip_llama_version(), FFNSKIP_LLAMA_VERSION " (ggml " FFNSKIP_GGML_VERSION ")") == 0,
           "llama.cpp's");
}

static void test_null(struct llama_model * model, struct ffnskip_controller * skip, struct llama_context * ctx) {
    const int32_t               refused = FFNSKIP_ERROR_ARGUMENT;
    struct llama_context_params params  = llama_context_default_params();
    struct ffnskip_stats        stats   = { sizeof(stats), 0, 0, 0, 0, 0, 0, 0, NULL, 0, 0 };
    const struct llama_batch    batch   = one_token(1, 0, 0);
    const uint8_t               kind    = FFNSKIP_ROW_PROMPT;

    ffnskip_free(NULL);
    expect_refused(ffnskip_attach(NULL, &params), refused, NULL, "controller is null");
    expect_refused(ffnskip_set_option(NULL, "max-skip", "1"), refused, NULL, "controller is null");
    expect_refused(ffnskip_load_profile(NULL, "x"), refused, NULL, "controller is null");
    expect_refused(ffnskip_find_profile(NULL, model, "x"), refused, NULL, "controller is null");
    expect_refused(ffnskip_set_model_path(NULL, "x"), refused, NULL, "controller is null");
    expect_refused(ffnskip_probe(NULL, ctx), refused, NULL, "controller is null");
    expect_refused(ffnskip_decode(NULL, ctx, batch), refused, NULL, "controller is null");
    expect_refused(ffnskip_decode_rows(NULL, ctx, batch, &kind), refused, NULL, "controller is null");
    expect_refused(ffnskip_seq_cp(NULL, 0, 1), refused, NULL, "controller is null");
    expect_refused(ffnskip_seq_add(NULL, 0, 0, 1, 1), refused, NULL, "controller is null");
    expect_refused(ffnskip_seq_reset(NULL, 0), refused, NULL, "controller is null");
    expect_refused(ffnskip_get_stats(NULL, &stats), refused, NULL, "controller is null");
    expect_refused(ffnskip_reset_stats(NULL), refused, NULL, "controller is null");

    expect_refused(ffnskip_attach(skip, NULL), refused, skip, "params is null");
    expect_refused(ffnskip_set_option(skip, NULL, "1"), refused, skip, "name is null");
    expect_refused(ffnskip_set_option(skip, "max-skip", NULL), refused, skip, "max-skip is null");
    expect_refused(ffnskip_load_profile(skip, NULL), refused, skip, "path is null");
    expect_refused(ffnskip_find_profile(skip, NULL, "x"), refused, skip, "model is null");
    expect_refused(ffnskip_find_profile(skip, model, NULL), refused, skip, "model_path is null");
    expect_refused(ffnskip_set_model_path(skip, NULL), refused, skip, "model_path is null");
    expect_refused(ffnskip_probe(skip, NULL), refused, skip, "ctx is null");
    expect_refused(ffnskip_decode(skip, NULL, batch), refused, skip, "ctx is null");
    expect_refused(ffnskip_decode_rows(skip, NULL, batch, &kind), refused, skip, "ctx is null");
    expect_refused(ffnskip_decode_rows(skip, ctx, batch, NULL), refused, skip, "kinds is null");
    expect_refused(ffnskip_get_stats(skip, NULL), refused, skip, "stats is null");
}

static void test_bad_values(struct ffnskip_controller * skip, struct llama_context * ctx) {
    const int32_t        refused = FFNSKIP_ERROR_ARGUMENT;
    struct ffnskip_stats stats   = { 0 };
    struct llama_batch   batch   = one_token(1, 0, 0);
    const uint8_t        kind    = 3;

    expect_refused(ffnskip_set_option(skip, "color", "red"), refused, skip, "'color' is no skip option");
    expect_refused(ffnskip_set_option(skip, "max-skip", "x"), refused, skip, "'x' is not an integer");
    expect_refused(ffnskip_set_option(skip, "reuse", "some"), refused, skip, "'some' is unknown");
    expect_refused(ffnskip_load_profile(skip, "/no/such.gguf"), refused, skip, "/no/such.gguf");
    expect_refused(ffnskip_decode_rows(skip, ctx, batch, &kind), refused, skip, "kinds[0] is 3");
    expect_refused(ffnskip_seq_cp(skip, 0, -1), refused, skip, "to: -1 is no sequence");
    expect_refused(ffnskip_seq_cp(skip, 1 << 30, 0), refused, skip, "from: 1073741824 is no sequence");
    expect_refused(ffnskip_get_stats(skip, &stats), refused, skip, "stats->size is 0");
    batch.token = NULL;
    expect_refused(ffnskip_decode(skip, ctx, batch), refused, skip, "either token or embd");
}

// Statuses of llama_decode come through as they are.
static void test_decode_status(struct ffnskip_controller * skip, struct llama_context * ctx) {
    llama_token   many[1024] = { 0 };
    const int32_t n_batch    = (int32_t) llama_n_batch(ctx);
    expect_refused(ffnskip_decode(skip, ctx, llama_batch_get_one(many, n_batch + 1)), FFNSKIP_ERROR_ARGUMENT, skip,
                   "more than n_batch");
    while (ffnskip_decode(skip, ctx, llama_batch_get_one(many, n_batch)) == 0) {
    }
    expect_refused(ffnskip_decode(skip, ctx, llama_batch_get_one(many, n_batch)), 1, skip, "the context is full");
    expect_refused(ffnskip_decode(skip, ctx, one_token(-5, 0, 0)), -1, skip, "llama_decode returned -1");
    expect_refused(ffnskip_decode(skip, ctx, llama_batch_get_one(many, 0)), -1, skip, "llama_decode returned -1");
    llama_memory_clear(llama_get_memory(ctx), true);
}

static void test_settings(struct llama_model * model, struct ffnskip_controller * skip, struct llama_context * ctx,
                          const Tokens dense) {
    Tokens tokens;
    generate(model, ctx, skip, 0, tokens);
    expect(memcmp(tokens, dense, sizeof(Tokens)) == 0, "nothing is skipped before an option says so");
    expect(stats_of(skip).ffn_skipped == 0 && stats_of(skip).tokens == N_GENERATED - 1, "and it is counted");

    expect_ok(ffnskip_set_option(skip, "sim-threshold", "-1"), skip, "threshold");
    expect_ok(ffnskip_set_option(skip, "warm-up", "0"), skip, "warm-up");
    expect_ok(ffnskip_set_option(skip, "max-skip", "2"), skip, "max-skip");
    expect_refused(ffnskip_set_option(skip, "cold-e", "1000"), FFNSKIP_ERROR_ARGUMENT, skip, "cold_e");
    expect_ok(ffnskip_reset_stats(skip), skip, "reset");
    generate(model, ctx, skip, 0, tokens);
    const struct ffnskip_stats stats = stats_of(skip);
    expect(stats.ffn_skipped == MAX_SKIP * (uint64_t) (N_GENERATED - 1), "every token trips at once and skips two");
    expect(stats.checks == N_GENERATED - 1 && stats.tokens_never_tripped == 0, "at the first check");
    expect(stats.n_layer == (uint64_t) llama_model_n_layer(model), "layers");
    expect(stats.ffn_total == stats.n_layer * (N_GENERATED - 1) && stats.ffn_bytes_not_read > 0, "blocks");
    uint64_t sum = 0;
    for (uint64_t il = 0; il < stats.n_layer; ++il) {
        sum += stats.skipped_per_layer[il];
    }
    expect(sum == stats.ffn_skipped, "per layer");

    Tokens named;
    generate(model, ctx, skip, 1, named);
    expect(memcmp(tokens, named, sizeof(Tokens)) == 0, "the same tokens with the kinds of rows named");
    expect_ok(ffnskip_reset_stats(skip), skip, "reset");
    expect(stats_of(skip).tokens == 0, "nothing counted");

    // The struct of an older version: what lies behind it stays as it is.
    struct ffnskip_stats older = { 0 };
    older.size                 = offsetof(struct ffnskip_stats, ffn_total);
    older.n_layer              = 77;
    expect_ok(ffnskip_get_stats(skip, &older), skip, "older");
    expect(older.size == offsetof(struct ffnskip_stats, ffn_total) && older.n_layer == 77,
           "only what there is room for");
    struct {
        struct ffnskip_stats stats;
        uint64_t             later;
    } newer          = { { 0 }, 77 };
    newer.stats.size = sizeof(newer);
    expect_ok(ffnskip_get_stats(skip, &newer.stats), skip, "newer");
    expect(newer.stats.size == sizeof(struct ffnskip_stats) && newer.later == 77, "what this version knows");

    expect_ok(ffnskip_set_option(skip, "no-skip", NULL), skip, "no-skip");
    generate(model, ctx, skip, 0, tokens);
    expect(memcmp(tokens, dense, sizeof(Tokens)) == 0, "dense again");
    expect_ok(ffnskip_set_option(skip, "policy", "ffn_skip"), skip, "policy");
}

// Sequence 1 goes on where sequence 0 stands, with its count of generated tokens, if the controller is told.
static void test_sequences(struct llama_model * model, struct ffnskip_controller * skip, struct llama_context * ctx) {
    const llama_pos      end    = N_PROMPT + N_GENERATED - 1;
    const llama_memory_t memory = llama_get_memory(ctx);
    const uint64_t       told[] = { 1, 0, 1, 1, 0 };
    Tokens               tokens;
    for (int which = 0; which < 5; ++which) {
        generate(model, ctx, skip, 0, tokens);
        llama_pos    pos = end;
        llama_seq_id seq = which < 2 ? 1 : 0;
        if (which == 0) {
            expect_ok(ffnskip_seq_cp(skip, 0, 1), skip, "seq_cp");
        }
        if (which < 2) {
            llama_memory_seq_cp(memory, 0, 1, -1, -1);
        } else if (which == 3) {
            llama_memory_seq_add(memory, 0, 0, -1, 5);
            expect_ok(ffnskip_seq_add(skip, 0, 0, -1, 5), skip, "seq_add");
            pos += 5;
        } else if (which == 4) {
            expect_ok(ffnskip_seq_reset(skip, 0), skip, "seq_reset");
        }
        expect_ok(ffnskip_reset_stats(skip), skip, "reset");
        expect(ffnskip_decode(skip, ctx, one_token(tokens[N_GENERATED - 1], pos, seq)) == 0, "decode");
        if (stats_of(skip).tokens != told[which]) {
            printf("FAILED: case %d: %d generated tokens\n", which, (int) stats_of(skip).tokens);
            ++g_failures;
        }
    }
    expect_ok(ffnskip_set_option(skip, "reuse", "full"), skip, "reuse");
    expect_ok(ffnskip_set_option(skip, "reuse", "all"), skip, "reuse");
}

static void write_profile(const char * path, const char * model, uint32_t max_skip) {
    struct gguf_context * file = gguf_init_empty();
    gguf_set_val_str(file, "general.architecture", "ffnskip");
    gguf_set_val_str(file, "ffnskip.model", model);
    gguf_set_val_str(file, "ffnskip.policy", "ffn_skip");
    gguf_set_val_u32(file, "ffnskip.warm_up_index", 0);
    gguf_set_val_f32(file, "ffnskip.sim_threshold", -1.0f);
    gguf_set_val_u32(file, "ffnskip.cold_s", 1);
    gguf_set_val_u32(file, "ffnskip.cold_e", 4);
    gguf_set_val_u32(file, "ffnskip.max_skip", max_skip);
    expect(gguf_write_to_file(file, path, true), "a profile written");
    gguf_free(file);
}

static void test_profiles(struct llama_model * model, struct ffnskip_controller * skip, struct llama_context * ctx,
                          const char * model_path, const char * folder) {
    char   path[1024], beside[1024], fingerprint[512];
    Tokens tokens;
    snprintf(path, sizeof(path), "%s/c-api.ffnskip.gguf", folder);
    snprintf(beside, sizeof(beside), "%s/c-api.gguf", folder);
    remove(path);

    const int32_t found = ffnskip_find_profile(skip, model, model_path);
    expect(found == (strstr(model_path, "demo") != NULL ? FFNSKIP_OK : FFNSKIP_NO_PROFILE),
           "only the demo model has one");
    write_profile(path, "another model", 1);
    expect_refused(ffnskip_load_profile(skip, path), FFNSKIP_ERROR_PROFILE, skip, "it is for model 'another model'");

    // The message names the fingerprint of this one.
    const char * said = strstr(ffnskip_last_error(skip), "but this is '");
    if (said == NULL || sscanf(said, "but this is '%511[^']'", fingerprint) != 1) {
        expect(0, "the fingerprint");
        return;
    }
    write_profile(path, fingerprint, 1);
    expect_ok(ffnskip_load_profile(skip, path), skip, "load_profile");
    expect_ok(ffnskip_reset_stats(skip), skip, "reset");
    generate(model, ctx, skip, 0, tokens);
    expect(stats_of(skip).ffn_skipped == N_GENERATED - 1, "as the profile says");

    expect_ok(ffnskip_set_option(skip, "max-skip", "0"), skip, "an option after the profile");
    expect_ok(ffnskip_reset_stats(skip), skip, "reset");
    generate(model, ctx, skip, 0, tokens);
    expect(stats_of(skip).ffn_skipped == 0, "as the option says");
    expect_ok(ffnskip_find_profile(skip, model, beside), skip, "find_profile");
    expect_ok(ffnskip_reset_stats(skip), skip, "reset");
    generate(model, ctx, skip, 0, tokens);
    expect(stats_of(skip).ffn_skipped == N_GENERATED - 1, "the profile beside the model");
    remove(path);
}

// What was asked for before there was a context is judged by ffnskip_probe.
static void test_options_before_probe(struct llama_model * model) {
    struct ffnskip_controller * skip = ffnskip_init();
    struct llama_context *      ctx  = make_context(model, skip);
    Tokens                      tokens;
    expect_ok(ffnskip_set_option(skip, "cold-e", "1000"), skip, "noted");
    expect_ok(ffnskip_set_option(skip, "skip-ratio", "0.25"), skip, "noted");
    expect_ok(ffnskip_set_option(skip, "warm-up", "0"), skip, "noted");
    expect(stats_of(skip).n_layer == 0, "no layers before probe");
    expect_refused(ffnskip_probe(skip, ctx), FFNSKIP_ERROR_ARGUMENT, skip, "cold_e");
    expect_ok(ffnskip_set_option(skip, "cold-e", "12"), skip, "mended");
    generate(model, ctx, skip, 0, tokens);
    expect(stats_of(skip).checks > 0, "it may skip");
    expect_refused(ffnskip_probe(skip, ctx), FFNSKIP_ERROR_ARGUMENT, skip, "the context is in use");
    llama_memory_clear(llama_get_memory(ctx), true);
    expect_ok(ffnskip_probe(skip, ctx), skip, "probed once more");
    llama_free(ctx);
    ffnskip_free(skip);
}

static void test_channels(struct llama_model * model, const char * model_path) {
    struct ffnskip_controller * skip = ffnskip_init();
    struct llama_context *      ctx  = make_context(model, skip);
    Tokens                      tokens;
    expect_ok(ffnskip_set_model_path(skip, model_path), skip, "set_model_path");
    expect_ok(ffnskip_set_option(skip, "policy", "channels"), skip, "policy");
    expect_ok(ffnskip_set_option(skip, "warm-up", "0"), skip, "warm-up");
    expect_ok(ffnskip_probe(skip, ctx), skip, "probe");
    generate(model, ctx, skip, 0, tokens);
    const struct ffnskip_stats stats = stats_of(skip);
    expect(stats.tokens == N_GENERATED - 1 && stats.ffn_skipped == 0, "no blocks are skipped");
    expect(stats.bytes_left_out > 0 && stats.bytes_left_out < stats.bytes_total, "but channels are");
    llama_free(ctx);
    ffnskip_free(skip);
}

// A profile is found to be of another model when there is a context: it is forgotten, and options begin anew.
static void test_profile_before_probe(struct llama_model * model, const char * folder) {
    struct ffnskip_controller * skip = ffnskip_init();
    struct llama_context *      ctx  = make_context(model, skip);
    char                        path[1024];
    Tokens                      tokens;
    snprintf(path, sizeof(path), "%s/c-api-other.ffnskip.gguf", folder);
    write_profile(path, "another model", 1);
    expect_ok(ffnskip_load_profile(skip, path), skip, "noted");
    expect_refused(ffnskip_probe(skip, ctx), FFNSKIP_ERROR_PROFILE, skip, "it is for model 'another model'");
    generate(model, ctx, skip, 0, tokens);
    expect(stats_of(skip).checks == 0, "dense");
    expect_ok(ffnskip_set_option(skip, "no-skip", NULL), skip, "no-skip");
    expect_ok(ffnskip_set_option(skip, "skip-layers", "1"), skip, "skip-layers");
    expect_ok(ffnskip_set_option(skip, "warm-up", "0"), skip, "warm-up");
    expect_ok(ffnskip_reset_stats(skip), skip, "reset");
    llama_memory_clear(llama_get_memory(ctx), true);
    expect_ok(ffnskip_seq_reset(skip, -1), skip, "seq_reset");
    generate(model, ctx, skip, 0, tokens);
    expect(stats_of(skip).ffn_skipped > 0, "as the options say");
    remove(path);
    llama_free(ctx);
    ffnskip_free(skip);
}

int main(int argc, char ** argv) {
    if (argc != 3) {
        printf("usage: test_c_api MODEL FOLDER\n");
        return 2;
    }
    llama_log_set(be_quiet, NULL);
    struct llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == NULL) {
        printf("no model\n");
        return 1;
    }
    Tokens                 dense;
    struct llama_context * plain = make_context(model, NULL);
    generate(model, plain, NULL, 0, dense);
    llama_free(plain);

    test_versions();
    struct ffnskip_controller * skip = ffnskip_init();
    expect(skip != NULL && strcmp(ffnskip_last_error(skip), "") == 0, "init");
    struct llama_context * ctx = make_context(model, skip);
    test_null(model, skip, ctx);
    expect_ok(ffnskip_probe(skip, ctx), skip, "probe");
    test_bad_values(skip, ctx);
    test_decode_status(skip, ctx);
    test_settings(model, skip, ctx, dense);
    test_sequences(model, skip, ctx);
    test_profiles(model, skip, ctx, argv[1], argv[2]);
    llama_free(ctx);
    ffnskip_free(skip);
    test_options_before_probe(model);
    test_channels(model, argv[1]);
    test_profile_before_probe(model, argv[2]);
    llama_model_free(model);
    printf(g_failures == 0 ? "all passed\n" : "%d failed\n", g_failures);
    return g_failures == 0 ? 0 : 1;
}
