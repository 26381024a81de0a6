# Rewrites what no C++ compiler reads of a .cu file: launches and shared memory. Lines stay where they are.
#   cmake -DSOURCE=x.cu -DTARGET=x.cpp -P rewrite.cmake
file(READ "${SOURCE}" text)
set(name "[A-Za-z_][A-Za-z0-9_]*")
set(type "[A-Za-z0-9_:]+")
string(REGEX REPLACE "(${name}(<[A-Za-z0-9_:, ]*>)?)<<<([^;]*)>>>\\(" "::host_cuda::Launch(\\3).run(\\1, "
       text "${text}")
string(REGEX REPLACE "extern __shared__ (${type}) (${name})\\[\\];"
       "auto* const \\2 = static_cast<\\1*>(::host_cuda::shared_array());" text "${text}")
string(REGEX REPLACE "__shared__ (${type}) (${name})([^;]*);"
       "static const char \\2_tag = 0; using \\2_type = \\1\\3; auto& \\2 = *static_cast<\\2_type*>(::host_cuda::shared_variable(&\\2_tag, sizeof(\\2_type)));"
       text "${text}")
if(text MATCHES "<<<|__shared__")
  message(FATAL_ERROR "${SOURCE}: a launch or shared memory in a form that rewrite.cmake does not know")
endif()
file(WRITE "${TARGET}" "#line 1 \"${SOURCE}\"\n${text}")
