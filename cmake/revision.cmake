# Writes lte_build.h: how this build was made. Run at every build; rewritten only where it changed.
execute_process(COMMAND git -C ${SOURCE} describe --always --dirty --abbrev=12 --exclude=*
  OUTPUT_VARIABLE revision OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT revision)
  set(revision unknown)
endif()
configure_file(${SOURCE}/cmake/lte_build.h.in ${OUTPUT})
