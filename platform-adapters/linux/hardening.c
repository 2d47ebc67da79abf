// What Node cannot ask of the kernel by itself: keep other processes and the disk away from our memory. N-API, so one build serves every Node.
//
// apply(dumpable: boolean) -> { dumpable, noNewPrivileges, coreSoft, coreHard }
// Every value is read back from the kernel after it was set; nothing here decides whether it is good enough. Throws the errno's text if a call fails.
// There is no mlockall: V8 gives pages back with madvise(MADV_DONTNEED), which fails on locked memory, and V8 then aborts the process.
#define _GNU_SOURCE
#include <errno.h>
#include <node_api.h>
#include <stdbool.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

static napi_value fail(napi_env env, const char *call) {
  napi_throw_error(env, call, strerror(errno));
  return NULL;
}

static void put_bool(napi_env env, napi_value object, const char *name, bool value) {
  napi_value boxed;
  napi_get_boolean(env, value, &boxed);
  napi_set_named_property(env, object, name, boxed);
}

static void put_number(napi_env env, napi_value object, const char *name, double value) {
  napi_value boxed;
  napi_create_double(env, value, &boxed);
  napi_set_named_property(env, object, name, boxed);
}

static napi_value apply(napi_env env, napi_callback_info info) {
  size_t count = 1;
  napi_value argument, report;
  bool dumpable = false;
  if (napi_get_cb_info(env, info, &count, &argument, NULL, NULL) != napi_ok || count != 1 ||
      napi_get_value_bool(env, argument, &dumpable) != napi_ok) {
    napi_throw_type_error(env, NULL, "apply(dumpable: boolean)");
    return NULL;
  }

  // No core file, and none can be allowed again: the hard limit goes too. Programs that we start inherit it.
  struct rlimit core = {0, 0};
  if (setrlimit(RLIMIT_CORE, &core) != 0) return fail(env, "setrlimit");
  // Undumpable: same-user processes may not ptrace us or read /proc/<pid>/mem, and a core pipe handler gets nothing.
  if (prctl(PR_SET_DUMPABLE, dumpable ? 1 : 0, 0, 0, 0) != 0) return fail(env, "PR_SET_DUMPABLE");
  // No set-uid program below us gains rights.
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return fail(env, "PR_SET_NO_NEW_PRIVS");

  if (getrlimit(RLIMIT_CORE, &core) != 0) return fail(env, "getrlimit");
  napi_create_object(env, &report);
  put_bool(env, report, "dumpable", prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != 0);
  put_bool(env, report, "noNewPrivileges", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
  put_number(env, report, "coreSoft", (double)core.rlim_cur);
  put_number(env, report, "coreHard", (double)core.rlim_max);
  return report;
}

NAPI_MODULE_INIT() {
  napi_value function;
  napi_create_function(env, "apply", NAPI_AUTO_LENGTH, apply, NULL, &function);
  napi_set_named_property(env, exports, "apply", function);
  return exports;
}
