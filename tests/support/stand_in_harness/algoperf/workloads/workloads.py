import importlib

WORKLOADS = {
    'criteo1tb_test': {"workload_path": "algoperf/workloads/lines.py", "workload_class_name": "LinesWorkload"},
    'finewebedu_lm': {},
}  # fmt: skip  # the quotes are the harness's, by which its register is read


def convert_filepath_to_module(path):
    return path.removesuffix(".py").replace("/", ".")


def import_workload(workload_path, workload_class_name, return_class=False, workload_init_kwargs=None):
    found = getattr(importlib.import_module(convert_filepath_to_module(workload_path)), workload_class_name)
    return found if return_class else found(**(workload_init_kwargs or {}))
