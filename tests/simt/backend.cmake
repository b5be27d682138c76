# The tests of the backends once more, for the CUDA kernels run on the CPU: lte_gpu_simt is linked as
# objects and so stands before lte_gpu, which has the same functions.
function(lte_simt_backend_test name)
  add_executable(${name}_simt ${CMAKE_SOURCE_DIR}/tests/${name}.cpp)
  target_compile_definitions(${name}_simt PRIVATE LTE_TEST_BACKEND="cuda-simt" LTE_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  target_link_libraries(${name}_simt PRIVATE lte_simt_main lte_gpu_simt lte_model GTest::gtest)
  gtest_discover_tests(${name}_simt WORKING_DIRECTORY ${CMAKE_SOURCE_DIR} DISCOVERY_TIMEOUT 60
    TEST_PREFIX simt. PROPERTIES TIMEOUT 600)
  set_property(GLOBAL APPEND PROPERTY LTE_SIMT_TESTS ${name}_simt)
endfunction()
lte_simt_backend_test(ops_test)
lte_simt_backend_test(ops_experts_test)
lte_simt_backend_test(ops_routing_test)
lte_simt_backend_test(forward_test)
lte_simt_backend_test(forward_kinds_test)
lte_simt_backend_test(parity_test)
lte_simt_backend_test(device_test)
target_link_libraries(device_test_simt PRIVATE lte_bench)

# The benchmark programs on the same kernels: a smoke run of the rows that the filter names.
function(lte_simt_suite name filter)
  add_executable(bench_${name}_simt ${CMAKE_SOURCE_DIR}/suites/${name}.cpp)
  target_link_libraries(bench_${name}_simt PRIVATE lte_simt lte_gpu_simt lte_suite)
  add_test(NAME smoke.${name}.simt
    COMMAND bench_${name}_simt --smoke --backend=cuda-simt --threads=1 --benchmark_filter=${filter})
  set_tests_properties(smoke.${name}.simt PROPERTIES TIMEOUT 300)
  set_property(GLOBAL APPEND PROPERTY LTE_SIMT_TESTS bench_${name}_simt)
endfunction()
lte_simt_suite(ffn_kernel "(medium/f32|7b/bf16)/.*tokens:(1|16)/")
lte_simt_suite(ffn_layer "active_permille:500/layer:0/.*tokens:(1|16)/")
lte_simt_suite(decode "gpt2-medium/.*(dense|permille:(500|50))/batch:(1|16)/")
lte_simt_suite(prefill "gpt2-medium/.*(dense|permille:(500|50))/tokens:8/")
lte_simt_suite(train_step "tiny-gpt2-m")
