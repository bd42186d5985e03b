/* The engine as plain C: what a program needs to run a model, with Python or without.
 *
 * Life: miudo_create, miudo_set_tensors until every tensor is there, miudo_finalize, then
 * conversations and steps, miudo_destroy. Nothing is global. Calls on one engine may come from any
 * thread; they run one after the other. Not from an interrupt function, nor in a child that fork()
 * made: both are refused, and miudo_destroy does nothing in a child. Every function that can fail
 * returns a status and fills `error` (which may be NULL). All sizes are checked here again, whatever
 * the caller has checked. Where memory runs out, MIUDO_RESOURCE is returned and no conversation has
 * changed.
 *
 * Not for: files, tokenizers, text. Read next: core/engine.h.
 * Shapes: T ids in one work item, L layers, D d_model, V vocab_size, H heads.
 */
#ifndef MIUDO_H_
#define MIUDO_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  MIUDO_OK = 0,
  MIUDO_REQUEST = 1,     /* ids, settings, a conversation, a full cache */
  MIUDO_MODEL_FILE = 2,  /* tensors or a config that do not fit together */
  MIUDO_RESOURCE = 3,    /* too little memory */
  MIUDO_INTERRUPTED = 4, /* the interrupt function said stop */
  MIUDO_INTERNAL = 5
} miudo_status;

typedef struct {
  miudo_status status;
  char message[512]; /* ends with a zero, in English */
} miudo_error;

/* As in GGUF: single numbers, or blocks of a row with scales of their own. */
typedef enum {
  MIUDO_F32 = 0,
  MIUDO_F16 = 1,
  MIUDO_BF16 = 2,
  MIUDO_Q8_0 = 3,
  MIUDO_Q4_0 = 4,
  MIUDO_Q4_1 = 5,
  MIUDO_Q5_0 = 6,
  MIUDO_Q5_1 = 7,
  MIUDO_Q2_K = 8,
  MIUDO_Q3_K = 9,
  MIUDO_Q4_K = 10,
  MIUDO_Q5_K = 11,
  MIUDO_Q6_K = 12,
  MIUDO_IQ4_NL = 13,
  MIUDO_IQ4_XS = 14,
  MIUDO_MXFP4 = 15,
  MIUDO_TQ1_0 = 16,
  MIUDO_TQ2_0 = 17,
  /* The last, and miudo's own: the numbers of Q4_0 and Q8_0 without the zeros, as
   * native/kernels/sparse.h has them. For matrices of the blocks alone. */
  MIUDO_SPARSE4 = 18,
  MIUDO_SPARSE8 = 19
} miudo_dtype;

typedef struct {
  int64_t n_heads, n_kv_heads, head_dim, v_head_dim, d_ff;
  int64_t window; /* 0: full attention */
  /* Rotary pairs in radians a position: pair i is number i of a head with number i + n_frequencies.
   * 0: nothing is rotated. These and the slopes are copied; miudo/positional.py computes them. */
  const float* frequencies;
  size_t n_frequencies;
  /* ALiBi, [n_heads]: what a head's scores lose a position of distance. 0: nothing. */
  const float* slopes;
  size_t n_slopes;
} miudo_layer;

/* Multi-head latent attention. A head's last rope_dim numbers are what the frequencies rotate; a
 * key's are shared by all heads. */
typedef struct {
  int64_t q_rank;  /* 0: queries come straight from the input */
  int64_t kv_rank; /* 0: attention has no latents */
  int64_t rope_dim;
  double norm_eps;
} miudo_latent;

typedef struct {
  int64_t vocab_size, d_model, max_positions, n_layers;
  const miudo_layer* layers;
  int32_t norm;       /* 0 rms, 1 layer */
  int32_t block;      /* norms 0 before, 1 after, 2 before and after a sublayer */
  int32_t parallel;   /* 0 none, 1 with two norms, 2 with one norm */
  int32_t mlp;        /* 0 gated, 1 plain */
  int32_t activation; /* 0 silu, 1 gelu, 2 gelu_tanh, 3 relu */
  int32_t qk_norm;    /* 0 none, 1 head, 2 full */
  int32_t norm_weight, norm_bias, embed_norm, learned_positions;
  int32_t qkv_bias, o_bias, mlp_bias, tie_embeddings;
  double norm_eps;
  double attention_factor;                         /* multiplies cosines and sines; 1 as a rule */
  double embed_scale, residual_scale, logit_scale; /* 1 as a rule */
  double attn_scale;                               /* 0: head_dim^-0.5 */
  double attn_softcap, logit_softcap;              /* 0: none */
  miudo_latent latent;
} miudo_config;

/* What keys and values are rounded to. Int8: groups of 32 with a float16 scale. Int4: groups of 32
 * with a float16 step and minimum. */
typedef enum {
  MIUDO_CACHE_F32 = 0, /* with float activations: the reference */
  MIUDO_CACHE_F16 = 1,
  MIUDO_CACHE_BF16 = 2,
  MIUDO_CACHE_INT8 = 3,
  MIUDO_CACHE_INT4 = 4
} miudo_cache_type;

typedef struct {
  int32_t threads;          /* 0: MIUDO_THREADS, or the cores this process may use */
  int32_t int8_activations; /* for matrices in blocks; 0 is the float reference */
  int32_t cache_type;       /* a miudo_cache_type */
  uint64_t cache_bytes;     /* budget for keys and values, taken page by page when needed */
  /* Called between chunks of at most 256 positions, and some twenty times a second between the
   * layers of a long one; not 0 stops the call, which then has changed no conversation. It must
   * not call the engine. May be NULL. */
  int (*interrupt)(void* context);
  void* interrupt_context;
} miudo_options;

/* Filters apply in this order: mask, bias, repetition penalty, temperature, top-k, top-p, min-p.
 * Temperature 0 takes the most probable id (ties: the lowest). */
typedef struct {
  double temperature;
  int64_t top_k; /* 0: all */
  double top_p, min_p, repetition_penalty;
  const int32_t* bias_ids;
  const double* bias_values;
  size_t n_bias;
  uint64_t seed, request; /* with the position they key the random number */
} miudo_sampling;

enum {
  MIUDO_WANT_SAMPLE = 1,
  MIUDO_WANT_LAST_LOGITS = 2,
  MIUDO_WANT_ALL_LOGITS = 4,
  MIUDO_WANT_HIDDEN = 8,
  MIUDO_WANT_ATTENTION = 16
};

typedef struct {
  int64_t conversation;
  const int32_t* ids;
  size_t n_ids;
  /* How many of the last ids are a guess, less than n_ids; SAMPLE alone is wanted then. A token is
   * drawn at each of their positions in turn and behind the last, until one differs from the
   * guess; ids from there on are forgotten. So the tokens, and what the conversation then holds,
   * are those of single steps. */
  size_t n_drafted;
  uint32_t want;
  miudo_sampling sampling;
  const uint8_t* mask; /* [V], not 0 where an id may be drawn; NULL: everywhere */
  const char* adapter; /* one that miudo_add_adapter was given; NULL: none */
  /* Results; the caller owns the memory. */
  int32_t token;            /* the last that was drawn */
  double logprob;           /* of token, under the softmax of the raw logits */
  int32_t* tokens;          /* [n_drafted + 1] all that were drawn; optional without a draft */
  double* logprobs;         /* [n_drafted + 1] optional likewise */
  size_t n_tokens;          /* how many were drawn */
  float* logits;            /* [T, V] for ALL_LOGITS, else [V] for LAST_LOGITS */
  float* hidden;            /* [L + 1, T, D]: the residual stream before and after each layer */
  float* const* attention;  /* L times [H, T, n_keys] */
  size_t n_keys;            /* for attention: the caller's count of positions after this step */
} miudo_work;

/* For ids[1:] given what precedes each; arrays of n_ids - 1 rows. Optional ones may be NULL. */
typedef struct {
  float* logprobs;
  int32_t* argmax;
  float* logsumexp;     /* optional */
  int64_t top_k;        /* 0: the next two are not written */
  int32_t* top_ids;     /* [n_ids - 1, top_k], most probable first */
  float* top_logprobs;
} miudo_scores;

/* A tensor as it lies in a file. Matrices are [out, in]. */
typedef struct {
  const char* name;
  miudo_dtype type;
  const int64_t* shape;
  size_t n_dims;
  const void* bytes;
  size_t size_bytes;
  /* Bytes of a read-only map of a file that lie before `bytes`: pages of the map may be let go
   * once they are packed. 0 for other memory, which would lose what it holds. */
  size_t mapped_before;
} miudo_tensor;

/* One matrix's low-rank correction: out += scale * up (down x), beside the matrix. */
typedef struct {
  const char* matrix; /* as in miudo_tensor: "layers.0.attn.q.weight" */
  int64_t rank;
  const float* down; /* [rank, in] */
  size_t n_down;     /* numbers behind down */
  const float* up;   /* [out, rank] */
  size_t n_up;
  float scale;
} miudo_low_rank;

typedef struct miudo_engine miudo_engine;

miudo_status miudo_create(const miudo_config* config, const miudo_options* options,
                          miudo_engine** engine, miudo_error* error);
void miudo_destroy(miudo_engine* engine);

/* Copies tensors into the engine's own layout, on all of its threads: the more at a time, the
 * better they share the work. */
miudo_status miudo_set_tensors(miudo_engine* engine, const miudo_tensor* tensors, size_t n_tensors,
                               miudo_error* error);
miudo_status miudo_finalize(miudo_engine* engine, miudo_error* error);

miudo_status miudo_open(miudo_engine* engine, int64_t* conversation, miudo_error* error);
/* A new conversation that begins with the first `length` positions of another, sharing its pages;
 * one that is written later is copied then. */
miudo_status miudo_fork(miudo_engine* engine, int64_t conversation, size_t length,
                        int64_t* forked, miudo_error* error);
miudo_status miudo_close(miudo_engine* engine, int64_t conversation, miudo_error* error);
miudo_status miudo_length(miudo_engine* engine, int64_t conversation, size_t* length,
                          miudo_error* error);
miudo_status miudo_truncate(miudo_engine* engine, int64_t conversation, size_t length,
                            miudo_error* error);

/* Copies an adapter (LoRA), which works then name; one that is refused leaves nothing behind.
 * Keys and values depend on the adapter, so a conversation keeps the one of its first step until
 * it is truncated to nothing, and an adapter in use cannot be removed. */
miudo_status miudo_add_adapter(miudo_engine* engine, const char* name,
                               const miudo_low_rank* parts, size_t n_parts, miudo_error* error);
miudo_status miudo_remove_adapter(miudo_engine* engine, const char* name, miudo_error* error);

/* A batch that fails has changed no conversation. */
miudo_status miudo_step(miudo_engine* engine, miudo_work* works, size_t n_works,
                        miudo_error* error);
/* `adapter` may be NULL, here and below. */
miudo_status miudo_score(miudo_engine* engine, const int32_t* ids, size_t n_ids,
                         const char* adapter, const miudo_scores* scores, miudo_error* error);

/* logits [n_rows, V] of states [n_rows, D] such as MIUDO_WANT_HIDDEN gives, after whatever layer: the
 * final norm and the head, as if nothing came between (the logit lens). Of the last layer's they
 * are the logits of a step, bit for bit. No conversation takes part. */
miudo_status miudo_unembed(miudo_engine* engine, const float* hidden, size_t n_rows, float* logits,
                           miudo_error* error);

/* Writes at most max_tokens ids and their number; stops after an id in eos_ids, or when `on_token`
 * (may be NULL) returns not 0. Uses a conversation of its own. */
miudo_status miudo_generate(miudo_engine* engine, const int32_t* prompt, size_t n_prompt,
                            const char* adapter, const miudo_sampling* sampling,
                            const int32_t* eos_ids, size_t n_eos, size_t max_tokens,
                            int (*on_token)(int32_t token, void* context), void* context,
                            int32_t* tokens, size_t* n_tokens, miudo_error* error);

/* Where the time of steps goes. The clock is that of the thread that calls, waiting for the others
 * a phase of its own. `wanted` begins to sum from none; 0 ceases, as at first. */
enum {
  MIUDO_PHASE_ENTRY = 0, /* checks, pages, token rows, rotations */
  MIUDO_PHASE_NORM,      /* residual stream and norms */
  MIUDO_PHASE_QKV,       /* queries, keys and values, into the cache */
  MIUDO_PHASE_ATTENTION,
  MIUDO_PHASE_OUTPUT, /* attention's last matrix */
  MIUDO_PHASE_FEEDFORWARD,
  MIUDO_PHASE_HEAD,
  MIUDO_PHASE_SAMPLING,
  MIUDO_PHASE_WAITING,
  MIUDO_PHASES
};
miudo_status miudo_time_phases(miudo_engine* engine, int32_t wanted, miudo_error* error);
/* seconds [MIUDO_PHASES] so far. */
miudo_status miudo_phase_seconds(miudo_engine* engine, double* seconds, miudo_error* error);

const char* miudo_isa(const miudo_engine* engine);
int32_t miudo_threads(const miudo_engine* engine);
uint64_t miudo_weight_bytes(const miudo_engine* engine);
uint64_t miudo_cache_bytes_used(miudo_engine* engine); /* 0 where calls are refused */
/* Keys and values are held in pages of so many positions and bytes. A step that would need more
 * pages than cache_bytes holds, copies of shared ones included, is refused before any work. */
size_t miudo_page_positions(void);
uint64_t miudo_page_bytes(const miudo_engine* engine);

/* Pieces alone, for tests and other programs. */
double miudo_uniform(uint64_t seed, uint64_t request, uint64_t position);
miudo_status miudo_sample(const float* logits, size_t vocab_size, const miudo_sampling* sampling,
                          uint64_t position, const int32_t* seen, size_t n_seen,
                          const uint8_t* mask, int32_t* token, miudo_error* error);
/* out [n, rows] = x [n, cols] times a stored matrix [rows, cols], with the kernels that
 * miudo_create would choose. */
miudo_status miudo_linear(miudo_dtype type, int64_t rows, int64_t cols, const void* bytes,
                          size_t size_bytes, const float* x, size_t n, int32_t int8_activations,
                          float* out, miudo_error* error);

/* What this machine can do at best, measured when asked: the floor that a model's speed is held
 * against. */
typedef enum {
  MIUDO_PROBE_READ = 0,  /* plain reading, bytes a second */
  MIUDO_PROBE_INT8 = 1,  /* 8-bit products summed in 32 bits, operations a second */
  MIUDO_PROBE_FLOAT = 2  /* float products summed; a product and its sum are two operations */
} miudo_probe_kind;

/* The instruction sets that a probe can use here, best first; NULL past the last. */
const char* miudo_probe_isa(size_t index);
/* Fills rates [n_rates], each over about `seconds`, on `threads` threads (0 as in miudo_options).
 * `isa` is one of those above; NULL is the first. READ goes over size_bytes again and again, which
 * decides from which memory they come; the others need none. */
miudo_status miudo_probe(miudo_probe_kind kind, const char* isa, int32_t threads,
                         uint64_t size_bytes, double seconds, double* rates, size_t n_rates,
                         miudo_error* error);

#ifdef __cplusplus
}
#endif

#endif /* MIUDO_H_ */
