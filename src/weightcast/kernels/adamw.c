/* AdamW's update and the forecast along it, in one pass over memory.
 *
 * Every case is one plain loop that the compiler vectorises. eager.py is the oracle.
 */
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define BLOCK 32 /* elements: whole cache lines; what is streamed at a time */
#define AHEAD 96 /* elements: how far ahead reads are prefetched; more is slower, abruptly */
#define LARGE 1e15f   /* products of what is below are finite; what is above is scaled by TINY */
#define LARGEST 1e38f /* as good as infinite, and no NaN times zero */
#define TINY 0x1p-64f
#define MAX_THREADS 256
#define SMALLEST_SHARE 32768  /* elements: less is done sooner than a thread is made */
#define STREAM_FROM (1 << 21) /* elements: fewer stay in the cache for the forward pass */

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12
#define EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_PROCESSOR
#endif
#define INLINE static inline __attribute__((always_inline))

typedef struct {
    void *param;         /* what the network reads; float, or bfloat16 */
    const void *grad;    /* of the same type */
    const float *source; /* where the true weights are, if not in param */
    float *sink;         /* where to keep the true weights as well, if anywhere */
    float *m, *v, *v_max;
    float *t; /* steps taken */
    int64_t size;
} Operand;

typedef struct {
    double lr, beta1, beta2, eps, decay; /* decay: what weight decay leaves of a weight */
    double back, ahead;                  /* displacements that param is ahead now, and then */
    double gradient;                     /* factor of the gradient: unscaling, and -1 to maximise */
    double joint;                        /* not 0: one division may serve for two */
    double done;                         /* set when all has run */
} Settings;

typedef struct {
    const Operand *operands;
    const Settings *settings;
    int64_t begin, end; /* of all elements, counted through */
    int what, is_bfloat16, is_large;
} Share;

enum { FORECAST, STEP, RESTORE }; /* what a share does */

INLINE float to_float(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE uint16_t to_bfloat16(float value) { /* to the nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint16_t rounded = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    return (bits & 0x7fffffff) > 0x7f800000 ? (uint16_t)((bits >> 16) | 0x40) : rounded;
}

/* Past the cache: memory that is written whole need not be read first. */
INLINE void stream(float *restrict to, const float *restrict from, int64_t count) {
    int64_t i = 0;
#ifdef __SSE2__
    if (!((uintptr_t)to & 15))
        for (; i + 4 <= count; i += 4) _mm_stream_ps(to + i, _mm_loadu_ps(from + i));
#endif
    for (; i < count; i++) to[i] = from[i];
}

/* A block arrives while others are computed: the processor's own prefetching ends at every page.
   It never faults, so it may lie behind the end. */
INLINE void prefetch(const void *block, int size) {
    for (int i = 0; i < BLOCK * size; i += 64) __builtin_prefetch((const char *)block + i);
}

static double power(double base, int64_t exponent) {
    double result = 1;
    for (; exponent > 0; exponent >>= 1, base *= base)
        if (exponent & 1) result *= base;
    return result;
}

/* 1 / (1 - beta^t), and 0 before the first step, where nothing is to be walked */
static double correction(double beta, int64_t t) { return t > 0 ? 1 / (1 - power(beta, t)) : 0; }

/* What m is divided by: Delta / lr = m / scale(v), up to the factor 1 / (1 - beta1^t); root is
   1 / sqrt(1 - beta2^t) */
INLINE float scale(float v, float root, float eps) { return __builtin_sqrtf(v) * root + eps; }

/* The flags are constants where these two are called: every combination is a loop of its own. */
INLINE void step(const Operand *o, const Settings *s, int64_t begin, int64_t end, int is_bfloat16,
                 int is_ahead, int is_amsgrad, int is_streamed, int is_joint) {
    int64_t t = (int64_t)*o->t; /* counts this step already */
    float back = (float)(s->back * correction(s->beta1, t - 1));
    float root_before = (float)__builtin_sqrt(correction(s->beta2, t - 1));
    float rate = (float)(s->lr * correction(s->beta1, t));
    float ahead = (float)(s->ahead * correction(s->beta1, t));
    float root = (float)__builtin_sqrt(correction(s->beta2, t));
    float eps = (float)s->eps, decay = (float)s->decay, factor = (float)s->gradient;
    float rest1 = (float)(1 - s->beta1), beta2 = (float)s->beta2, rest2 = (float)(1 - s->beta2);
    const float *source = o->source ? o->source : o->param;
    const float *grads = o->grad;
    const uint16_t *grads16 = o->grad;
    float *params = o->param, *sink = o->sink, *ms = o->m, *vs = o->v, *v_maxes = o->v_max;
    uint16_t *params16 = o->param;
    float block[BLOCK];
    for (int64_t start = begin; start < end; start += BLOCK) {
        int64_t count = end - start < BLOCK ? end - start : BLOCK;
        int64_t next = start + AHEAD;
        float *predicted = is_streamed ? block : params + start;
        prefetch(source + next, 4), prefetch(ms + next, 4), prefetch(vs + next, 4);
        is_bfloat16 ? prefetch(grads16 + next, 2) : prefetch(grads + next, 4);
#pragma GCC ivdep
        for (int64_t k = 0; k < count; k++) {
            int64_t i = start + k;
            float theta = source[i], m = ms[i], v = vs[i];
            float g = factor * (is_bfloat16 ? to_float(grads16[i]) : grads[i]);
            float v_max = is_amsgrad ? v_maxes[i] : v;
            float m_before = m, before = is_ahead ? scale(v_max, root_before, eps) : 1;
            ms[i] = m += rest1 * (g - m);
            vs[i] = v = v * beta2 + rest2 * g * g;
            if (is_amsgrad) v_maxes[i] = v_max = v_max >= v ? v_max : v;
            float now = scale(is_amsgrad ? v_max : v, root, eps);
            float both = 0, shrink_before = 1, shrink_now = 1;
            if (is_joint) { /* one division for two; their product must be finite */
                before = before < LARGEST ? before : LARGEST, now = now < LARGEST ? now : LARGEST;
                shrink_before = before > LARGE ? TINY : 1, shrink_now = now > LARGE ? TINY : 1;
                before *= shrink_before, now *= shrink_now;
                both = 1 / (before * now);
            }
            if (is_ahead)
                theta += back * (is_joint ? m_before * shrink_before * now * both : m_before / before);
            float u = is_joint ? m * shrink_now * before * both : m / now;
            /* rounded here, before the forecast: else nobody could tell the two apart again */
            theta = theta * decay - rate * u;
            if (is_bfloat16) {
                sink[i] = theta;
                params16[i] = to_bfloat16(theta - ahead * u);
            } else
                predicted[k] = theta - ahead * u;
        }
        if (is_streamed) stream(params + start, block, count);
    }
}

INLINE void forecast(const Operand *o, const Settings *s, int64_t begin, int64_t end,
                     int is_bfloat16, int is_kept, int is_streamed) {
    int64_t t = (int64_t)*o->t;
    float ahead = (float)(s->ahead * correction(s->beta1, t));
    float back = o->source ? 0 : (float)(s->back * correction(s->beta1, t));
    float root = (float)__builtin_sqrt(correction(s->beta2, t));
    float eps = (float)s->eps, decay = (float)s->decay;
    const float *source = o->source ? o->source : o->param;
    const float *ms = o->m, *vs = o->v_max ? o->v_max : o->v;
    float *params = o->param, *sink = o->sink;
    uint16_t *params16 = o->param;
    float block[BLOCK];
    for (int64_t start = begin; start < end; start += BLOCK) {
        int64_t count = end - start < BLOCK ? end - start : BLOCK;
        int64_t next = start + AHEAD;
        float *kept = is_streamed || !is_kept ? block : sink + start;
        prefetch(source + next, 4), prefetch(ms + next, 4), prefetch(vs + next, 4);
#pragma GCC ivdep
        for (int64_t k = 0; k < count; k++) {
            int64_t i = start + k;
            float theta = source[i];
            if (is_kept) kept[k] = theta;
            float u = ms[i] / scale(vs[i], root, eps);
            if (!is_kept && !is_bfloat16) theta += back * u; /* rounded here, as in the step */
            theta = theta * decay - ahead * u;
            if (is_bfloat16)
                params16[i] = to_bfloat16(theta);
            else
                params[i] = theta;
        }
        if (is_streamed) stream(sink + start, block, count);
    }
}

INLINE void restore(const Operand *o, int64_t begin, int64_t end, int is_streamed) {
    const float *source = o->source;
    float *params = o->param;
    if (!is_streamed) {
        memcpy(params + begin, source + begin, (size_t)(end - begin) * sizeof(float));
        return;
    }
    for (int64_t start = begin; start < end; start += BLOCK) {
        prefetch(source + start + AHEAD, 4);
        stream(params + start, source + start, end - start < BLOCK ? end - start : BLOCK);
    }
}

INLINE void run_step(const Operand *o, const Share *share, int64_t begin, int64_t end,
                     int is_amsgrad) {
    const Settings *s = share->settings;
    if (share->is_bfloat16)
        step(o, s, begin, end, 1, 0, is_amsgrad, 0, 0);
    else if (o->source && share->is_large)
        step(o, s, begin, end, 0, 0, is_amsgrad, 1, 0);
    else if (o->source || s->back == 0)
        step(o, s, begin, end, 0, 0, is_amsgrad, 0, 0);
    else if (s->joint != 0)
        step(o, s, begin, end, 0, 1, is_amsgrad, 0, 1);
    else
        step(o, s, begin, end, 0, 1, is_amsgrad, 0, 0);
}

INLINE void run_forecast(const Operand *o, const Share *share, int64_t begin, int64_t end) {
    const Settings *s = share->settings;
    if (share->is_bfloat16)
        forecast(o, s, begin, end, 1, 0, 0);
    else if (o->sink && share->is_large)
        forecast(o, s, begin, end, 0, 1, 1);
    else if (o->sink)
        forecast(o, s, begin, end, 0, 1, 0);
    else
        forecast(o, s, begin, end, 0, 0, 0);
}

EVERY_PROCESSOR void weightcast_run_share(const Share *share) {
    int64_t first = 0;
    for (const Operand *o = share->operands; first < share->end; first += o->size, o++) {
        int64_t begin = share->begin > first ? share->begin - first : 0;
        int64_t end = share->end - first < o->size ? share->end - first : o->size;
        if (begin >= end) continue;
        if (share->what == RESTORE)
            restore(o, begin, end, share->is_large);
        else if (share->what == FORECAST)
            run_forecast(o, share, begin, end);
        else if (o->v_max)
            run_step(o, share, begin, end, 1);
        else
            run_step(o, share, begin, end, 0);
    }
#ifdef __SSE2__
    _mm_sfence(); /* what was streamed is there for everybody */
#endif
}

/* GOMP_parallel of the OpenMP that torch computes with: its threads, which stay awake for a while
   after torch's own work, are on the cores already; others would wait until they sleep */
typedef void (*Parallel)(void (*run)(void *), void *work, unsigned threads, unsigned flags);

typedef struct {
    Share shares[MAX_THREADS];
    int count, next;
} Work;

static void take_shares(void *argument) { /* however many threads come, until none is left */
    Work *work = argument;
    for (int k; (k = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED)) < work->count;)
        weightcast_run_share(&work->shares[k]);
}

static void *run_thread(void *work) {
    take_shares(work);
    return 0;
}

void weightcast_run(const Operand *operands, int64_t count, Settings *settings, int what,
                    int is_bfloat16, int threads, Parallel parallel) {
    Work work;
    pthread_t workers[MAX_THREADS];
    int64_t total = 0, begin = 0;
    int started = 0;
    for (int64_t k = 0; k < count; k++) {
        total += operands[k].size;
        if (what == STEP) *operands[k].t += 1;
    }
    if (threads > total / SMALLEST_SHARE) threads = (int)(total / SMALLEST_SHARE);
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads < 1) threads = 1;
    work.count = threads, work.next = 0;
    for (int k = 0; k < threads; k++) {
        int64_t end = k == threads - 1 ? total : total * (k + 1) / threads / BLOCK * BLOCK;
        work.shares[k] = (Share){operands, settings, begin, end, what, is_bfloat16,
                               total >= STREAM_FROM};
        begin = end;
    }
    if (threads > 1 && parallel) {
        parallel(take_shares, &work, 0, 0);
        settings->done = 1;
        return;
    }
    while (started < threads - 1 && !pthread_create(&workers[started], 0, run_thread, &work))
        started++;
    take_shares(&work);
    while (started) pthread_join(workers[--started], 0);
    settings->done = 1;
}
