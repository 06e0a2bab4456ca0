#ifdef __linux__
#define _DEFAULT_SOURCE /* madvise, syscall */
#endif
#include "planish_runtime.h"

#ifdef MODEL_NO_THREADS
#define THREAD_LOCAL
#else
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#define THREAD_LOCAL _Thread_local
#endif

/* ---------------------------------------------------------------- workspaces: one stack per thread */

static uint8_t *workspace;
static size_t workspace_bytes;
static THREAD_LOCAL size_t workspace_used;
static THREAD_LOCAL int thread_index;

void planish_use_workspace(void *base, size_t bytes_per_thread) {
  workspace = base;
  workspace_bytes = bytes_per_thread;
  workspace_used = 0;
}

static void *allocate(int device, int id, uint64_t bytes, int code, int bits) {
  size_t start = workspace_used;
  size_t size = ((size_t)bytes + MODEL_ALIGNMENT - 1) / MODEL_ALIGNMENT * MODEL_ALIGNMENT;
  (void)device, (void)id, (void)code, (void)bits;
  if (start + size > workspace_bytes) return NULL;
  workspace_used = start + size;
  return workspace + (size_t)thread_index * workspace_bytes + start;
}

/* Kernels give back in the reverse order of taking, so that the stack shrinks to the start of the piece. */
static int release(int device, int id, void *piece) {
  (void)device, (void)id;
  workspace_used = (size_t)((uint8_t *)piece - workspace) - (size_t)thread_index * workspace_bytes;
  return 0;
}

/* ---------------------------------------------------------------- threads */

/* The environment and the body of a parallel loop, as the compiled kernels have them. */
typedef struct {
  void *barrier;
  int32_t tasks;
} environment;
typedef int (*loop_body)(int task, environment *env, void *captured);

static int run_serially(loop_body body, void *captured) {
  environment env = {NULL, 1};
  return body(0, &env, captured);
}

#ifdef MODEL_NO_THREADS

int planish_set_threads(int n) { return n == 1 ? MODEL_OK : MODEL_THREADS; }

static int launch(loop_body body, void *captured, int tasks) {
  (void)tasks;
  return run_serially(body, captured);
}

#else

/* Loops of one model follow each other within microseconds: a worker looks this often before it sleeps. */
enum { SPINS = 4000 };

static int threads = 1;
static pthread_t worker_ids[MODEL_MAX_THREADS];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;

static struct {
  loop_body body; /* NULL: the workers end */
  void *captured;
  atomic_int generation, running, failed;
} job;

static void rest(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  __asm__ __volatile__("yield");
#endif
}

static void await_job(int generation) {
  for (int i = 0; i < SPINS; ++i, rest())
    if (atomic_load_explicit(&job.generation, memory_order_acquire) != generation) return;
  pthread_mutex_lock(&mutex);
  while (atomic_load(&job.generation) == generation) pthread_cond_wait(&wake, &mutex);
  pthread_mutex_unlock(&mutex);
}

static void run_task(int task) {
  environment env = {NULL, threads};
  if (job.body(task, &env, job.captured)) atomic_store(&job.failed, 1);
}

/* A worker's number and the generation that it has seen travel in its argument, so that none is missed. */
static int born_at[MODEL_MAX_THREADS];

static void *work(void *argument) {
  int generation;
  thread_index = (int)(intptr_t)argument;
  generation = born_at[thread_index];
  for (;;) {
    await_job(generation++);
    if (!job.body) return NULL;
    workspace_used = 0;
    run_task(thread_index);
    atomic_fetch_sub_explicit(&job.running, 1, memory_order_release);
  }
}

static void post_job(loop_body body, void *captured) {
  job.body = body;
  job.captured = captured;
  atomic_store(&job.running, threads - 1);
  pthread_mutex_lock(&mutex);
  atomic_fetch_add_explicit(&job.generation, 1, memory_order_release);
  pthread_cond_broadcast(&wake);
  pthread_mutex_unlock(&mutex);
}

/* With fewer free cores than threads a worker may need this one. */
static void await_workers(void) {
  for (int i = 0; atomic_load_explicit(&job.running, memory_order_acquire); ++i)
    if (i < SPINS)
      rest();
    else
      sched_yield();
}

static THREAD_LOCAL int inside;

static int launch(loop_body body, void *captured, int tasks) {
  size_t used = workspace_used;
  (void)tasks; /* the loop splits itself by env.tasks */
  if (threads == 1 || inside || thread_index) return run_serially(body, captured);
  atomic_store(&job.failed, 0);
  post_job(body, captured);
  inside = 1;
  run_task(0);
  inside = 0;
  await_workers();
  workspace_used = used;
  return atomic_load(&job.failed) ? MODEL_FAILED : MODEL_OK;
}

static void end_workers(void) {
  post_job(NULL, NULL);
  for (int i = 1; i < threads; ++i) pthread_join(worker_ids[i], NULL);
  threads = 1;
}

int planish_set_threads(int n) {
  if (n < 1 || n > MODEL_MAX_THREADS) return MODEL_THREADS;
  if (n == threads) return MODEL_OK;
  if (threads > 1) end_workers();
  for (; threads < n; ++threads) {
    born_at[threads] = atomic_load(&job.generation);
    if (pthread_create(&worker_ids[threads], NULL, work, (void *)(intptr_t)threads)) {
      end_workers();
      return MODEL_THREADS;
    }
  }
  return MODEL_OK;
}

#endif

/* ---------------------------------------------------------------- weights that are read when the program starts */

#ifdef MODEL_LOADED_WEIGHTS

#ifdef __linux__
#include <sys/mman.h>

/* Pages of 2 MiB spare most address look-ups in weights, which are read once per run from end to end. */
static void prefer_huge_pages(uint8_t *start, size_t bytes) {
  const uintptr_t page = (uintptr_t)2 << 20;
  uintptr_t first = ((uintptr_t)start + page - 1) / page * page, last = ((uintptr_t)start + bytes) / page * page;
  if (first < last) madvise((void *)first, last - first, MADV_HUGEPAGE);
}
#else
static void prefer_huge_pages(uint8_t *start, size_t bytes) { (void)start, (void)bytes; }
#endif

uint8_t *planish_weight_memory(const planish_model *model) {
  uint8_t *memory = (uint8_t *)model->weights;
  prefer_huge_pages(memory, model->weight_bytes);
  return memory;
}

#endif

/* ---------------------------------------------------------------- Intel's matrix unit */

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>

/* Linux gives a process the tiles of AMX only when it asks; where there are none, asking does no harm. */
__attribute__((constructor)) static void ask_for_matrix_unit(void) {
  const long request_permission = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
  syscall(SYS_arch_prctl, request_permission, tile_data);
}
#endif

/* ---------------------------------------------------------------- the slots that the object file leaves open */

void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = release;
int (*__TVMBackendParallelLaunch)(loop_body, void *, int) = launch;
