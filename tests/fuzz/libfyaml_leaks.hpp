// libfyaml 0.7.12 loses a buffer when it refuses some unclosed quotes: not ours to mend, and small.
// For the one source file of a target that reads YAML.
#pragma once

extern "C" const char* __lsan_default_suppressions() {
  return "leak:libfyaml.so\n";
}
